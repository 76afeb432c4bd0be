"""Prints training and evaluation speed: `python tests/bench_training.py [--preset ...] [--batch-size ...]`.

Each setting runs in a process of its own, one after the other.
"""

import argparse
import os
import subprocess
import sys
import time

SETTINGS = (("tensorflow", False), ("tensorflow", True), ("jax", True))


def measure(preset, batch_size, steps, jit_compile):
    """Prints images a second of the fastest of `steps` training and evaluation steps."""
    import keras
    import numpy as np

    import keras_binaryvit as kb

    kb.keep_freed_memory()
    model = kb.BinaryViT.from_preset(preset)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adamw", loss=loss, jit_compile=jit_compile)
    images = np.random.default_rng(0).normal(size=(batch_size, *model.image_shape)).astype("float32")
    labels = np.arange(batch_size) % model.num_classes

    def fastest(step):
        start = time.perf_counter()
        step()
        first = time.perf_counter() - start
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return first, batch_size / min(times)

    first, training = fastest(lambda: model.train_on_batch(images, labels))
    _, evaluation = fastest(lambda: model.predict_on_batch(images))
    print(
        f"{preset}, batch {batch_size}, {keras.backend.backend()}, jit_compile={jit_compile}: "
        f"training {training:.2f} images/s, evaluation {evaluation:.2f} images/s, first step {first:.0f} s",
        flush=True,
    )


def main():
    """Runs all settings, or the one of this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="binaryvit_small")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--jit", choices=["on", "off"], help="measure in this process, with the backend of the environment"
    )
    arguments = parser.parse_args()
    if arguments.jit:
        measure(arguments.preset, arguments.batch_size, arguments.steps, arguments.jit == "on")
        return
    for backend, jit in SETTINGS:
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, *sys.argv, "--jit", "on" if jit else "off"]
        try:
            subprocess.run(command, env=environment, timeout=900)
        except subprocess.TimeoutExpired:
            print(f"{backend}, jit_compile={jit}: not done within 15 minutes")


if __name__ == "__main__":
    main()
