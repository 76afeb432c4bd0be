"""Prints how long training takes to start: `python benchmarks/start.py [--backends tensorflow jax] [--presets ...]`.

For each preset, its float twin and a DeiT with as many blocks: the seconds of the first training step, those of all
processors together, which what else the machine does hardly changes, and images a second after it. Each is measured in
a process of its own, one after the other; nothing is taken from JAX's compilation cache.
"""

import argparse
import os
import subprocess
import sys
import time

NETWORKS = ("binary", "float twin", "DeiT")


def create(preset: str, network: str):
    """Returns one of `NETWORKS` for a preset."""
    import keras_binaryvit as kb

    arguments = kb.BinaryViT.presets[preset].config
    if network == "binary":
        return kb.BinaryViT.from_preset(preset)
    if network == "float twin":
        real = dict.fromkeys(["input_quantizer", "kernel_quantizer", "conv_kernel_quantizer"])
        return kb.BinaryViT(**arguments, **real, binary_probabilities=False)
    large = arguments["image_shape"][0] >= 224
    patch_size, embed_dim, num_heads = (16, 384, 6) if large else (4, 128, 2)
    return kb.DeiT(
        image_shape=arguments["image_shape"],
        num_classes=arguments["num_classes"],
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=sum(arguments["depths"]),
        num_heads=num_heads,
    )


def measure(preset: str, network: str, batch_size: int, steps: int) -> None:
    """Prints the row of one network."""
    import keras
    import numpy as np

    import keras_binaryvit as kb

    kb.disable_malloc_trim()
    model = create(preset, network)
    model.compile(kb.optimizers.AdamW(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = np.random.default_rng(0).normal(size=(batch_size, *model.image_shape)).astype("float32")
    labels = np.arange(batch_size) % model.num_classes
    times = []
    for _ in range(1 + steps):
        start, processors = time.perf_counter(), time.process_time()
        model.train_on_batch(images, labels)
        times.append((time.perf_counter() - start, time.process_time() - processors))
    first, processors = times[0]
    speed = batch_size / min(seconds for seconds, _ in times[1:])
    row = f"{keras.backend.backend():10}  {preset:26}  {network:10}  {first:8.1f} s  {processors:8.1f} s"
    print(f"{row}  {speed:8.1f} images/s", flush=True)


def main() -> None:
    """Runs all measurements, or the one of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["tensorflow", "jax"])
    parser.add_argument("--presets", nargs="+", default=["binaryvit_tiny_32", "binaryvit_small"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="after the first one")
    parser.add_argument("--network", choices=NETWORKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.network:
        measure(arguments.presets[0], arguments.network, arguments.batch_size, arguments.steps)
        return
    columns = f"{'backend':10}  {'preset':26}  {'network':10}  first step  processors"
    print(f"{columns}  after it, batch {arguments.batch_size}")
    for backend in arguments.backends:
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        for preset in arguments.presets:
            for network in NETWORKS:
                command = [sys.executable, __file__, "--presets", preset, "--network", network]
                command += ["--batch-size", str(arguments.batch_size), "--steps", str(arguments.steps)]
                subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
