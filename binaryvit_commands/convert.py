"""Converts a .keras model to a .tflite file for the Larq Compute Engine or binaryvit-runtime, and verifies it.

binaryvit-convert model.keras model.tflite --verify cifar10 --data-dir ~/tensorflow_datasets
binaryvit-convert model.keras model.h --target c    # a C99 header for microcontrollers; also from a fused .tflite
"""

import argparse
import functools
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from binaryvit_commands import command


def parse_arguments() -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", help="the .keras file to read; with --target c also a fused .tflite file, as it is")
    parser.add_argument("output", help="the file to write")
    parser.add_argument(
        "--target",
        choices=["tflite", "c"],
        default="tflite",
        help="c: a C99 header for microcontrollers, of the model with --ops fused",
    )
    parser.add_argument(
        "--ops",
        choices=["lce", "fused"],
        default="lce",
        help="lce: what an unmodified LCE runs; fused: one operator a layer, for binaryvit-runtime",
    )
    parser.add_argument("--converter", choices=["auto", "lce", "tensorflow"], default="auto", help="which one to use")
    parser.add_argument("--batch-size", type=int, help="images that the file computes at once")
    parser.add_argument("--no-strict", action="store_true", help="convert layers that are binary in name only")
    parser.add_argument(
        "--int8", action="store_true", help="int8 for float layers, ranges from --verify's training images"
    )
    parser.add_argument("--float16-constants", action="store_true", help="store large float constants as float16")
    parser.add_argument("--verify", metavar="DATASET", help="verify with this data set's test images, not with noise")
    parser.add_argument("--data-dir", help="where TensorFlow Datasets has prepared it")
    parser.add_argument("--images", type=int, default=32, help="how many images to verify with")
    parser.add_argument("--no-verify", action="store_true", help="write the file unchecked")
    parser.add_argument(
        "--trained-on", metavar="DATASET", help="take preprocessing and class names of it, not of the model"
    )
    parser.add_argument("--class-names", metavar="FILE", help="the classes' names, one per line, if not the model's")
    parser.add_argument("--report", metavar="HTML", help="write a page about the file: sizes, agreement, speed, layers")
    return parser.parse_args()


class Steps:
    """Prints what is being done, and at its end how long it took."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def begin(self, what: str) -> None:
        """Prints `what` and leaves the line open."""
        print(f"{what} ... ", end="", flush=True)
        self._start = time.perf_counter()

    def end(self, result: str = "done") -> None:
        """Ends the line with `result` and the seconds since it began."""
        print(f"{result} ({time.perf_counter() - self._start:.1f} s)", flush=True)


@command
def main() -> None:
    """Converts, verifies and writes, in this order: a file that fails the check isn't written."""
    arguments = parse_arguments()
    if arguments.images < 1:
        raise ValueError(f"--images must be positive. Received: {arguments.images}")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # a .keras file is the same for all backends
    steps = Steps()
    steps.begin("Starting TensorFlow")
    import numpy as np

    import keras_binaryvit as kb
    from keras_binaryvit.deploy.flatbuffer import read
    from keras_binaryvit.deploy.interpreters import random_inputs
    from keras_binaryvit.files import check_output

    steps.end()
    for path in filter(None, (arguments.output, arguments.report)):
        check_output(path)
    if arguments.target == "c" and arguments.model.endswith(".tflite"):
        _write_c(arguments.output, Path(arguments.model).read_bytes())
        return
    steps.begin(f"Reading {arguments.model}")
    model = kb.deploy.load_model(arguments.model)
    steps.end(f"{model.name}, {model.count_params():,} parameters")
    if arguments.verify and len(getattr(model, "inputs", None) or ()) != 1:
        raise ValueError("--verify is for models with one input, an image. Without it the file is verified on noise.")
    preprocessor = class_names = None  # of the model
    if arguments.trained_on:
        side = model.input_shape[1]
        preprocessor = kb.data.preprocessor(arguments.trained_on, side, data_dir=arguments.data_dir)
        class_names = kb.data.info(arguments.trained_on, arguments.data_dir).class_names
    if arguments.class_names:
        class_names = tuple(Path(arguments.class_names).read_text(encoding="utf-8").splitlines())
    load: Any = functools.partial(kb.data.load, arguments.verify, data_dir=arguments.data_dir, shuffle=False)
    known = preprocessor or getattr(model, "preprocessor", None)
    if arguments.verify:
        load = functools.partial(load, **({"preprocessor": known} if known else {"image_size": model.input_shape[1]}))
    int8 = {}
    if arguments.int8:
        if not arguments.verify:
            raise ValueError("--int8 takes the ranges of values from training images: say which with --verify DATASET.")
        data = load("train[:100]", batch_size=100)
        int8 = {"float_layers": "int8", "representative_data": data.as_numpy_iterator()}
    steps.begin("Freezing and converting")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        flatbuffer = kb.deploy.convert(
            model,
            "fused" if arguments.target == "c" else arguments.ops,
            arguments.float16_constants,
            batch_size=arguments.batch_size,
            strict=not arguments.no_strict,
            converter=arguments.converter,
            preprocessor=preprocessor,
            class_names=class_names,
            **int8,
        )
    ops = kb.deploy.count_operators(flatbuffer)
    binary = {name: count for name, count in ops.items() if name == "LceBconv2d" or name.startswith("BinaryVit")}
    counts = ", ".join(f"{count} {name}" for name, count in binary.items()) or "none binary"
    steps.end(f"{len(flatbuffer) / 1e6:.2f} MB, {ops.total()} ops, of which {counts}")
    for warning in caught:
        print(warning.message)

    if not known or not (class_names or getattr(model, "class_names", None)):
        print(
            "The file doesn't say how to prepare images and what its classes are called: --trained-on DATASET adds it."
        )

    images: Any = None
    labels = result = None
    if not arguments.no_verify:
        if arguments.verify:
            splits = kb.data.info(arguments.verify, arguments.data_dir).num_examples
            batches = load(f"{'test' if 'test' in splits else 'validation'}[:{arguments.images}]")
            images, labels = (np.concatenate(arrays) for arrays in zip(*batches.as_numpy_iterator(), strict=True))
        else:
            content = read(flatbuffer)
            images = random_inputs(content, -(-arguments.images // content.inputs[0].shape[0]))
        steps.begin(f"Verifying on {arguments.images} {arguments.verify or 'random'} images")
        # Rounded inputs flip signs: what int8 costs is shown, not refused.
        bounds = {"min_agreement": 0.0, "max_mean_difference": 1.0} if arguments.int8 else {}
        result = kb.deploy.verify(model, flatbuffer, images, labels, progress=sys.stderr.isatty(), **bounds)
        steps.end(f"agreement {result.agreement:.2%}, largest difference {result.largest_difference:.1e}")
        if labels is not None:
            print(f"Accuracy: {result.model_accuracy:.2%} of the model, {result.flatbuffer_accuracy:.2%} of the file")
        if result.first_difference and not arguments.int8:
            print(f"Where the first disagreement begins: {result.first_difference}")
    if arguments.target == "c":
        _write_c(arguments.output, flatbuffer)
    else:
        kb.deploy.write_file(arguments.output, flatbuffer)
        print(f"Wrote {arguments.output}")
    if arguments.report:
        steps.begin("Measuring for the report")
        page = kb.deploy.report(model, flatbuffer, images, result, title=Path(arguments.output).name)
        kb.deploy.write_file(arguments.report, page.encode())
        steps.end(f"wrote {arguments.report}")


def _write_c(path, flatbuffer):
    import keras_binaryvit as kb

    export = kb.deploy.export_c(flatbuffer, re.sub(r"\W", "_", Path(path).stem))
    kb.deploy.write_file(path, export.source.encode())
    print(f"Wrote {path}")
    print(f"Flash: {export.constant_bytes:,} bytes of constants, and about {export.code_bytes:,} of code (an estimate)")
    print(f"RAM: {export.scratch_bytes:,} bytes of scratch memory, and {export.input_bytes:,} of input")
