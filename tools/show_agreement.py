"""Prints how the trained CIFAR-10 preset, fused, agrees with Keras: `python tools/show_agreement.py --data-dir FOLDER`.

The fused flatbuffer in binaryvit-runtime, against the frozen fused model, called eagerly, and the trained model. With
`--arm64 LIBRARY`, a runtime for 64-bit ARM, against the emulated board too (see runtime/tests/arm64.sh).
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

RUN = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter, load_delegate
folder, library = sys.argv[1:]
interpreter = Interpreter(f"{folder}/model.tflite", experimental_delegates=[load_delegate(library)])
interpreter.allocate_tensors()
(source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
outputs = []
for image in np.load(f"{folder}/images.npy"):
    interpreter.set_tensor(source["index"], image[None])
    interpreter.invoke()
    outputs.append(interpreter.get_tensor(target["index"]))
np.save(f"{folder}/outputs.npy", np.concatenate(outputs))
"""


def on_the_board(flatbuffer, images, library):
    """Returns the outputs on the emulated board."""
    script = Path(__file__).parents[1] / "runtime" / "tests" / "arm64.sh"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.tflite").write_bytes(flatbuffer)
        np.save(Path(folder, "images.npy"), images)
        environment = {**os.environ, "PYTHONPATH": ""}
        subprocess.run([script, "-c", RUN, folder, Path(library).resolve()], env=environment, check=True)
        return np.load(Path(folder, "outputs.npy"))


def main() -> None:
    """Prints a line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="where TensorFlow Datasets has prepared CIFAR-10")
    parser.add_argument("--images", type=int, default=1000, help="test images (%(default)s)")
    parser.add_argument("--arm64", metavar="LIBRARY", help="libbinaryvit_runtime.so for 64-bit ARM")
    arguments = parser.parse_args()
    from binaryvit_runtime import Interpreter

    import keras_binaryvit as kb

    batches = kb.data.load(
        "cifar10", f"test[:{arguments.images}]", batch_size=50, image_size=32, data_dir=arguments.data_dir
    )
    images, _ = (np.concatenate(arrays) for arrays in zip(*batches.as_numpy_iterator(), strict=True))
    model = kb.BinaryViT.from_preset("binaryvit_tiny_32_cifar10")
    flatbuffer = kb.deploy.convert(model, ops="fused")
    outputs = Interpreter(flatbuffer).predict(images)
    others = {}
    for name, network in (("frozen model", kb.deploy.freeze(model, ops="fused")), ("trained model", model)):
        parts = [network(images[i : i + 50], training=False) for i in range(0, len(images), 50)]
        others[name] = np.concatenate([np.asarray(part) for part in parts])
    if arguments.arm64:
        others["emulated ARM board"] = on_the_board(flatbuffer, images, arguments.arm64)
    for name, expected in others.items():
        agreement = np.mean(outputs.argmax(-1) == expected.argmax(-1))
        difference = np.abs(outputs - expected).max()
        print(f"{name}: {agreement:.2%} of classes, logits differ by {difference:.1e} of {np.abs(expected).max():.1f}")


if __name__ == "__main__":
    main()
