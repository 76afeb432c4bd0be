"""Prints speed and memory of training: `python benchmarks/training.py [--preset ...] [--image-size ...] [...]`.

For each backend: images a second of training and evaluation; the time of a training step against the same network in
real numbers; and the peak memory of the process with and without rematerialization. Each measurement runs in a process
of its own, one after the other; the first two share one for each backend's setting, so that their ratio is fair.
"""

import argparse
import os
import resource
import subprocess
import sys
import time

SETTINGS = (("tensorflow", False), ("tensorflow", True), ("jax", True))


def create(arguments, **more):
    """Returns a compiled model, and a batch for it."""
    import keras
    import numpy as np

    import keras_binaryvit as kb

    if arguments.image_size:
        more["image_shape"] = (arguments.image_size, arguments.image_size, 3)
    model = kb.BinaryViT.from_preset(arguments.preset, **more)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adamw", loss=loss, jit_compile=arguments.jit == "on")
    images = np.random.default_rng(0).normal(size=(arguments.batch_size, *model.image_shape)).astype("float32")
    return model, images, np.arange(arguments.batch_size) % model.num_classes


def fastest(steps, *functions):
    """Returns the seconds of the first function's first call, and those of the fastest of `steps` more of each.

    They take turns, so that what else the machine does hits all of them.
    """

    def seconds(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    first, *_ = [seconds(function) for function in functions]
    times = [[seconds(function) for function in functions] for _ in range(steps)]
    return first, *map(min, zip(*times, strict=True))


def measure_speed(arguments):
    """Prints images a second of the model, and the ratio to its float twin."""
    import keras_binaryvit as kb

    kb.disable_malloc_trim()
    real = dict.fromkeys(["input_quantizer", "kernel_quantizer", "conv_kernel_quantizer"])
    binary, images, labels = create(arguments)
    twin, _, _ = create(arguments, **real, binary_probabilities=False)
    first, step, twin_step, evaluation = fastest(
        arguments.steps,
        lambda: binary.train_on_batch(images, labels),
        lambda: twin.train_on_batch(images, labels),
        lambda: binary.predict_on_batch(images),
    )
    print(
        f"training {len(images) / step:.2f} images/s, evaluation {len(images) / evaluation:.2f} images/s, "
        f"first step {first:.0f} s; a training step takes {step / twin_step:.2f} times that of the float twin"
    )


def measure_memory(arguments):
    """Prints the peak memory of this process after training steps, above what it had before the model."""
    model, images, labels = create(arguments, remat=arguments.measure == "memory-remat")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, step = fastest(arguments.steps, lambda: model.train_on_batch(images, labels))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    remat = "with" if arguments.measure == "memory-remat" else "without"
    print(
        f"peak memory {remat} remat: {peak / 2**20:.2f} GiB, {(peak - before) / 2**20:.2f} GiB of it since the model "
        f"was built; {len(images) / step:.2f} images/s"
    )


def main():
    """Runs all measurements, or the one of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="binaryvit_small")
    parser.add_argument("--image-size", type=int, help="instead of the preset's")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for a measurement")
    parser.add_argument("--measure", choices=["speed", "memory", "memory-remat"], help="only this one")
    parser.add_argument("--jit", choices=["on", "off"], help="in this process, with the backend of the environment")
    arguments = parser.parse_args()
    measurements = [arguments.measure] if arguments.measure else ["speed", "memory", "memory-remat"]
    if arguments.jit and len(measurements) == 1:
        (measure_speed if arguments.measure == "speed" else measure_memory)(arguments)
        return
    settings = SETTINGS
    if arguments.jit:
        settings = [(os.environ.get("KERAS_BACKEND", "tensorflow"), arguments.jit == "on")]
    for backend, jit in settings:
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        for measurement in measurements:
            title = f"{arguments.preset}, batch {arguments.batch_size}, {backend}, jit_compile={jit}: "
            print(title, end="", flush=True)
            command = [sys.executable, *sys.argv, "--measure", measurement, "--jit", "on" if jit else "off"]
            try:
                subprocess.run(command, env=environment, timeout=arguments.timeout)
            except subprocess.TimeoutExpired:
                print(f"not done within {arguments.timeout} s")


if __name__ == "__main__":
    main()
