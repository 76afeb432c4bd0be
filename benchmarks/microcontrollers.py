"""Prints flash, RAM and instructions of models on emulated Cortex-M boards: `python benchmarks/microcontrollers.py`.

The trained CIFAR-10 preset, and what else is named: `.keras` files of models that take pixels, such as that of the
quickstart. It needs gcc-arm-none-eabi, libnewlib-arm-none-eabi and qemu-system-arm.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "deploy"))

import boards
import numpy as np

import keras_binaryvit as kb


def measure(name, model, folder):
    """Prints a row for each board and optimization."""
    export = kb.deploy.export_c(kb.deploy.convert(model, "fused"))
    image = np.random.default_rng(0).integers(0, 256, (1, *model.input_shape[1:]), np.uint8)
    print(f"{name}: {export.constant_bytes:,} bytes of constants, {export.scratch_bytes:,} of scratch memory")
    for processor, board in boards.BOARDS.items():
        for optimization in ("-Os", "-O2", "-O3"):
            program = boards.build(folder, export.source, image, board, "-std=c99", optimization)
            size = subprocess.run(["arm-none-eabi-size", program], capture_output=True, text=True, check=True).stdout
            code = int(size.splitlines()[1].split()[0]) - export.constant_bytes - image.nbytes
            instructions = boards.run(program, board)[1]
            print(f"  {processor} {optimization}: {code:,} bytes of code, {instructions / 1e6:.2f} M instructions")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help=".keras files")
    models = {"binaryvit_tiny_32_cifar10": kb.BinaryViT.from_preset("binaryvit_tiny_32_cifar10")}
    models |= {path: kb.deploy.load_model(path) for path in parser.parse_args().models}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            measure(name, model, Path(folder))


if __name__ == "__main__":
    main()
