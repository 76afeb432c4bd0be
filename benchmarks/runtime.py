"""Speed of `binaryvit_small` in binaryvit-runtime, beside what one would pick instead: `python benchmarks/runtime.py`.

Makes the flatbuffers of all networks with random weights, at 224x224, and runs them by turns on one thread. CPU time
counts, whatever else the machine does. With `--threads` it prints wall-clock times of more threads.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

FLOAT = {"MobileNetV2, float32": "mobilenet_v2", "DeiT-Tiny, float32": "deit_tiny"}
BINARY = {"binaryvit_small, fused": "fused", "binaryvit_small, LCE graph": "lce"}


def make(name: str, file: Path) -> None:
    """Writes a flatbuffer, in a process of its own."""
    import keras
    import tensorflow as tf

    import keras_binaryvit as kb

    keras.utils.set_random_seed(0)
    if name in ("fused", "lce", "float16"):
        model = kb.BinaryViT.from_preset("binaryvit_small")
        rng = np.random.default_rng(0)
        for variable in model.weights:  # as after training: no shift is 0, no slopes are equal
            if "kernel" not in variable.path:
                variable.assign(variable + rng.uniform(0.01, 0.1, variable.shape))
        tables = {"float16_constants": True} if name == "float16" else {}
        file.write_bytes(kb.deploy.convert(model, ops="lce" if name == "lce" else "fused", **tables))
        return
    model = kb.DeiT.from_preset("deit_tiny") if name == "deit_tiny" else keras.applications.MobileNetV2(weights=None)
    model.export(file.with_suffix(""), input_signature=[tf.TensorSpec((1, 224, 224, 3))], verbose=False)
    file.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(file.with_suffix(""))).convert())


def peak_memory():
    """Returns the process's peak memory in MiB; what getrusage says begins with the parent's."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def times_by_turns(functions, rounds, clock):
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
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--output", type=Path, default=Path("out/benchmark"), help="where the flatbuffers are kept")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make, arguments.output / f"{arguments.make}.tflite")
        return
    from binaryvit_runtime import Interpreter

    image = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    if arguments.memory:
        before = peak_memory()
        Interpreter(arguments.memory).predict(image)
        print(f"{peak_memory():.0f} MiB, of which {peak_memory() - before:.0f} MiB since the imports")
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    files = {name: arguments.output / f"{name}.tflite" for name in (*FLOAT.values(), *BINARY.values(), "float16")}
    this = [sys.executable, __file__, "--output", arguments.output]
    for name, file in files.items():
        if not file.exists():
            print(f"Making {file} ...", file=sys.stderr)
            subprocess.run([*this, "--make", name], check=True, stderr=subprocess.DEVNULL)

    import larq_compute_engine as lce

    larq = lce.testing.Interpreter(files["lce"].read_bytes(), num_threads=1, use_indirect_bgemm=True, use_xnnpack=True)
    functions = {name: Interpreter(files[file]).predict for name, file in {**FLOAT, **BINARY}.items()}
    functions["binaryvit_small, LCE graph, in LCE's interpreter"] = larq.predict
    for kernels in ("avx2", "sse"):
        os.environ["BINARYVIT_KERNELS"] = kernels
        functions[f"binaryvit_small, fused, {kernels} kernels"] = Interpreter(files["fused"]).predict
    os.environ.pop("BINARYVIT_KERNELS")
    times = times_by_turns([lambda f=f: f(image) for f in functions.values()], arguments.rounds, time.thread_time)
    medians = dict(zip(functions, np.median(times, axis=0), strict=True))
    fused = medians["binaryvit_small, fused"]
    print("| network, one thread | CPU time | times the fused one |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} ms | {value / fused:.2f} |")

    print("\n| threads | wall-clock time, median | best | speed-up of the best |\n|---|---|---|---|")
    runs = [Interpreter(files["fused"], count).predict for count in arguments.threads]
    times = times_by_turns([lambda f=f: f(image) for f in runs], arguments.rounds, time.perf_counter)
    best = times.min(axis=0)
    for count, median, least in zip(arguments.threads, np.median(times, axis=0), best, strict=True):
        print(f"| {count} | {median:.2f} ms | {least:.2f} ms | {best[0] / least:.2f} |")

    print("\n| flatbuffer | size |\n|---|---|")
    for name, file in files.items():
        print(f"| {name} | {file.stat().st_size / 1e6:.2f} MB |")
    memory = subprocess.run([*this, "--memory", files["fused"]], capture_output=True, text=True, check=True)
    print(f"\nPeak memory of a process that runs the fused one: {memory.stdout.strip()}.")


if __name__ == "__main__":
    main()
