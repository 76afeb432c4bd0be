"""Speed, size and memory in binaryvit-runtime and LiteRT: `python benchmarks/runtime.py [--image-size 32]`.

Makes the flatbuffers of all networks with random weights and runs them alternately: the CPU time of one thread, then
the wall-clock time of `--threads`. The peak memory of each is that of a process of its own, beyond the imports. At
224x224 the accuracy on ImageNet is what the papers report.
"""

import argparse
import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

# By the images' height and width: network and kind of its file, and the accuracy that its paper reports:
# arXiv 2306.16678, 1801.04381, 1905.02244 (table 4 for int8), 2012.12877.
NETWORKS = {
    224: {
        "binaryvit_small fused": "67.7 %",
        "binaryvit_small_fp_merging fused": "70.6 %",
        "binaryvit_small lce": "67.7 %",
        "MobileNetV2 float32": "72.0 %",
        "MobileNetV2 int8": "70.9 %",
        "MobileNetV3Small float32": "67.4 %",
        "MobileNetV3Small int8": "64.9 %",
        "deit_tiny float32": "72.2 %",
    },
    32: {
        "binaryvit_32 fused": "",
        "binaryvit_tiny_32 fused": "",
        "ResNet20 float32": "",
        "ResNet20 int8": "",
        "MobileNetV2 float32": "",
        "MobileNetV2 int8": "",
    },
}


def resnet20():
    """Returns the ResNet-20 for CIFAR-10 of arXiv 1512.03385, with convolutions for shortcuts where the map shrinks."""
    from keras import Input, Model, layers

    def convolution(x, filters, size, stride):
        x = layers.Conv2D(filters, size, stride, "same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    inputs = Input((32, 32, 3))
    x = layers.ReLU()(convolution(inputs, 16, 3, 1))
    for filters, first in ((16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)):
        y = layers.ReLU()(convolution(x, filters, 3, first))
        y = convolution(y, filters, 3, 1)
        x = layers.ReLU()(y + (x if first == 1 else convolution(x, filters, 1, first)))
    return Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def create(network: str, side: int):
    """Returns the Keras model with random weights."""
    import keras

    import keras_binaryvit as kb

    keras.utils.set_random_seed(0)
    shape = {"input_shape": (side, side, 3), "weights": None, "classes": 1000 if side == 224 else 10}
    if network == "ResNet20":
        return resnet20()
    if network == "MobileNetV2":
        return keras.applications.MobileNetV2(**shape)
    if network == "MobileNetV3Small":
        return keras.applications.MobileNetV3Small(**shape, include_preprocessing=False)
    if network.startswith("deit"):
        return kb.DeiT.from_preset(network)
    model = kb.BinaryViT.from_preset(network)
    rng = np.random.default_rng(0)
    for variable in model.weights:  # as after training: no shift is 0, no slopes are equal
        if "kernel" not in variable.path:
            variable.assign(variable + rng.uniform(0.01, 0.1, variable.shape))
    return model


def make(name: str, side: int, file: Path) -> None:
    """Writes a flatbuffer, and what the network costs beside it, in a process of its own."""
    import tensorflow as tf

    import keras_binaryvit as kb

    network, kind = name.split()
    model = create(network, side)
    costs = kb.profile.summary(model, print_fn=lambda text: None)
    binary, real = costs.macs.get(1, 0), sum(count for bits, count in costs.macs.items() if bits > 1)
    parameters = sum(costs.parameters.values())
    file.with_suffix(".txt").write_text(f"{parameters / 1e6:.2f} M | {binary / 1e6:,.0f} M | {real / 1e6:,.0f} M")
    if kind in ("fused", "lce"):
        file.write_bytes(kb.deploy.convert(model, ops=kind))
        return
    folder = str(file.with_suffix(""))
    model.export(folder, input_signature=[tf.TensorSpec((1, side, side, 3))], verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    if kind == "int8":
        images = np.random.default_rng(0).normal(size=(20, 1, side, side, 3)).astype(np.float32)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image] for image in images)
    file.write_bytes(converter.convert())


def peak_memory():
    """Returns the process's peak memory in MiB; what getrusage says begins with the parent's."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def interleaved_times(functions, rounds, clock):
    """Returns the milliseconds of each function in each round, `(rounds, functions)`."""
    times = []
    for _ in range(rounds + 3):
        for function in functions:
            start = clock()
            function()
            times.append(clock() - start)
    return np.reshape(times, (rounds + 3, -1))[3:] * 1000


def main() -> None:
    """Prints the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, choices=NETWORKS, default=224)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2, help="of the wall-clock times")
    parser.add_argument("--output", type=Path, default=Path("out/benchmark"), help="where the flatbuffers are kept")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    side = arguments.image_size
    files = {name: arguments.output / f"{name.replace(' ', '_')}_{side}.tflite" for name in NETWORKS[side]}
    if arguments.make:
        make(arguments.make, side, files[arguments.make])
        return
    from binaryvit_runtime import Interpreter

    image = np.random.default_rng(0).normal(size=(1, side, side, 3)).astype(np.float32)
    if arguments.memory:
        before = peak_memory()
        Interpreter(files[arguments.memory]).predict(image)
        print(f"{peak_memory() - before:.0f} MiB")
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    this = [sys.executable, __file__, "--output", arguments.output, "--image-size", str(side)]
    for name, file in files.items():
        if not file.exists():
            print(f"Making {file} ...", file=sys.stderr)
            subprocess.run([*this, "--make", name], check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL)
    ours = next(iter(files))

    def interpreters(threads):
        functions = {name: Interpreter(file, threads).predict for name, file in files.items()}
        for kernels in ("avx512bw", "avx2", "sse"):
            os.environ["BINARYVIT_KERNELS"] = kernels
            with contextlib.suppress(ValueError):  # this processor can't run them
                functions[f"{ours}, {kernels} kernels"] = Interpreter(files[ours], threads).predict
        os.environ.pop("BINARYVIT_KERNELS")
        if side == 224 and importlib.util.find_spec("larq_compute_engine"):
            import larq_compute_engine as lce

            flatbuffer = files["binaryvit_small lce"].read_bytes()
            options = {"use_indirect_bgemm": True, "use_xnnpack": True, "num_threads": threads}
            functions["binaryvit_small lce, LCE's interpreter"] = lce.testing.Interpreter(flatbuffer, **options).predict
        return functions

    def measure(threads, clock):
        functions = interpreters(threads)
        times = interleaved_times([lambda f=f: f(image) for f in functions.values()], arguments.rounds, clock)
        return dict(zip(functions, np.median(times, axis=0), strict=True))

    one, more = measure(1, time.thread_time), measure(arguments.threads, time.perf_counter)
    print(
        f"| network, {side}x{side} | one thread, CPU time | times the first | {arguments.threads} threads, wall-clock "
        "time | file | peak memory | parameters | multiply-adds: binary | real | ImageNet top-1 |\n|" + "---|" * 10
    )
    for name, value in one.items():
        costs = " | | | | | "
        if name in files:
            memory = subprocess.run([*this, "--memory", name], capture_output=True, text=True, check=True)
            size = f"{files[name].stat().st_size / 1e6:.2f} MB"
            costs = " | ".join([size, memory.stdout.strip(), files[name].with_suffix(".txt").read_text(), ""])
            costs += NETWORKS[side][name]
        print(f"| {name} | {value:.2f} ms | {value / one[ours]:.2f} | {more[name]:.2f} ms | {costs} |")


if __name__ == "__main__":
    main()
