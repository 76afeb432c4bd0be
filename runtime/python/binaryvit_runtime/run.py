"""binaryvit-run: prints the most probable classes of images."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from binaryvit_runtime.classifier import Classifier
from binaryvit_runtime.metadata import read_metadata
from binaryvit_runtime.preprocessing import Preprocessor

_PREPARING = """
Files that keras_binaryvit has converted say how to prepare images. For any other give --mean and --std of the
training images, on the scale 0 to 1, one for each channel; for most models trained on ImageNet these are
--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225, with --resize-size 256 --interpolation bicubic for 224 pixels.
"""


def _numbers(text):
    try:
        return tuple(float(value) for value in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} isn't numbers with commas between them") from None


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="binaryvit-run", description="Prints the most probable classes of images.", epilog=_PREPARING
    )
    parser.add_argument("model", help="the .tflite file")
    parser.add_argument("images", nargs="+", metavar="image", help="an image file: JPEG, PNG and whatever Pillow reads")
    parser.add_argument("--top", type=int, default=5, help="how many classes to print (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads that share an inference (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON array instead")
    parser.add_argument("--class-names", metavar="FILE", help="the classes' names, one per line")
    parser.add_argument("--mean", type=_numbers, help="such as 0.485,0.456,0.406")
    parser.add_argument("--std", type=_numbers, help="such as 0.229,0.224,0.225")
    parser.add_argument("--resize-size", type=int, help="pixels of the short side before the crop in the center")
    parser.add_argument("--interpolation", choices=["bilinear", "bicubic"], help="how to resize")
    parser.add_argument("--outputs", choices=["logits", "probabilities"], help="what the model's outputs are")
    return parser.parse_args(arguments)


def _preprocessor(arguments, described):
    """Returns what the options and the model's metadata say together."""
    names = ("mean", "std", "resize_size", "interpolation")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if described is not None:
        return dataclasses.replace(described, **given)
    missing = [f"--{name}" for name in ("mean", "std") if name not in given]
    if missing:
        raise ValueError(
            f"{arguments.model} doesn't say how to prepare its images: {' and '.join(missing)} must be given, such as "
            "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 for most models trained on ImageNet."
        )
    return Preprocessor(**given)


def _printable(text):
    """Returns a label without what would steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def main(arguments: list[str] | None = None) -> int:
    """Classifies each image; one that can't be read is reported on stderr, and the others are classified.

    Returns:
        The exit status: 0, or 1 if anything went wrong, or 130 after Ctrl-C.
    """
    options = parse_arguments(arguments)
    try:
        if options.top < 1:
            raise ValueError(f"--top must be positive. Received: {options.top}")
        preprocessor = _preprocessor(options, read_metadata(options.model).preprocessor)
        names = Path(options.class_names).read_text(encoding="utf-8").splitlines() if options.class_names else None
        classifier = Classifier(
            options.model, options.threads, preprocessor=preprocessor, class_names=names, outputs=options.outputs
        )
    except (OSError, ValueError, RuntimeError) as error:
        print(f"binaryvit-run: {error}", file=sys.stderr)
        return 1

    try:
        return _classify_all(classifier, options)
    except KeyboardInterrupt:
        print("binaryvit-run: interrupted", file=sys.stderr)
        return 130


def _classify_all(classifier, options):
    status, results = 0, []
    for image in options.images:
        try:
            predictions = classifier.classify(image, options.top)
        except (OSError, ValueError) as error:
            print(f"binaryvit-run: {error}", file=sys.stderr)
            status = 1
            continue
        if options.json:
            results.append({"image": image, "classes": [dataclasses.asdict(prediction) for prediction in predictions]})
            continue
        if len(options.images) > 1:
            print(image)
        for prediction in predictions:
            print(f"{prediction.probability:7.2%}  {_printable(prediction.label)}")
    if options.json:
        print(json.dumps(results, ensure_ascii=False, indent=2))
    return status


if __name__ == "__main__":
    sys.exit(main())
