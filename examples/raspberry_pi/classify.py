"""Says what is in an image file, or what the Raspberry Pi's camera sees until Ctrl-C.

python classify.py model.tflite photo.jpg
python classify.py model.tflite
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator

from binaryvit_runtime import Classifier, Prediction
from PIL.Image import Image


def frames(size: tuple[int, int]) -> Iterator[Image]:
    """Yields images of the camera, the newest one each time."""
    try:
        from picamera2 import Picamera2
    except ImportError as error:
        raise ImportError(
            "The camera needs picamera2: apt install python3-picamera2, in a virtual environment made with "
            "--system-site-packages."
        ) from error
    with Picamera2() as camera:
        camera.configure(camera.create_video_configuration({"size": size}))
        camera.start()
        while True:
            yield camera.capture_image()


def show(predictions: list[Prediction], seconds: float) -> None:
    """Prints the classes in one line, over the last one on a terminal."""
    text = "  ".join(f"{prediction.probability:.0%} {prediction.label}" for prediction in predictions)
    line = f"{text}  ({1000 * seconds:.1f} ms)"
    if sys.stdout.isatty():
        print(f"\r\033[K{line}", end="", flush=True)
    else:
        print(line, flush=True)


def main() -> None:
    """Classifies the image, or what the camera sees."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a .tflite file that keras_binaryvit has converted")
    parser.add_argument("image", nargs="?", help="an image file; the camera without it")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    arguments = parser.parse_args()
    classifier = Classifier(arguments.model, arguments.threads)
    if arguments.image:
        for prediction in classifier.classify(arguments.image):
            print(f"{prediction.probability:7.2%}  {prediction.label}")
        return
    for image in frames((640, 480)):
        start = time.perf_counter()
        predictions = classifier.classify(image, top=3)
        show(predictions, time.perf_counter() - start)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        sys.exit(f"classify.py: {error}")
    except KeyboardInterrupt:
        print()
