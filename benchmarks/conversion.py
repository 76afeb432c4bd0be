"""Prints what freezing makes of the LCE graph: `python benchmarks/conversion.py [--presets ...]`.

Every preset, with random values in all its variables, is converted twice: by this version, and by the first one, which
exported the layers as they are trained (from the repository's history). Both files then run in LCE's interpreter by
turns, on one thread at its best settings.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
FIRST = "238ba72"

CONVERT = """
import sys, time, keras, numpy as np, keras_binaryvit as kb
preset, output, untrained = sys.argv[1:]
model = kb.BinaryViT.from_preset(preset)
rng = np.random.default_rng(0)
for variable in [] if untrained == "True" else model.variables:  # as after training: no zero shifts, no equal slopes
    if "moving_variance" in variable.path:
        variable.assign(rng.uniform(0.5, 2, variable.shape))
    elif "clip" not in variable.path and "kernel" not in variable.path and "seed" not in variable.path:
        variable.assign_add(rng.normal(size=variable.shape) * 0.1)
start = time.perf_counter()
flatbuffer = kb.deploy.convert(model)
print(f"{time.perf_counter() - start:.0f} s")
open(output, "wb").write(flatbuffer)
"""


def convert(package, preset, output, untrained):
    """Converts in a process of its own, with the library of the folder `package`; returns the time it took."""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(package)}
    command = [sys.executable, "-c", CONVERT, preset, str(output), str(untrained)]
    # The working directory stands before everything else on the path.
    run = subprocess.run(command, env=environment, cwd=package, check=True, capture_output=True, text=True)
    return run.stdout.strip()


def latencies(flatbuffers, rounds):
    """Returns the median milliseconds of each flatbuffer, run by turns: CPU time, whatever else runs."""
    from keras_binaryvit.deploy.interpreters import interpreter_of

    interpreters = [interpreter_of(flatbuffer) for flatbuffer in flatbuffers]
    image = np.random.default_rng(0).normal(size=interpreters[0].input_shapes[0]).astype("float32")
    times = []
    for _ in range(rounds):
        for interpreter in interpreters:
            start = time.thread_time()
            interpreter.predict(image)
            times.append(time.thread_time() - start)
    return np.median(np.reshape(times[2 * len(interpreters) :], (-1, len(interpreters))), axis=0) * 1000


def main():
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    presets = ["binaryvit_small", "binaryvit_small_fp_merging", "binaryvit_tiny_32"]
    parser.add_argument("--presets", nargs="+", default=presets)
    parser.add_argument("--untrained", action="store_true", help="leave zero shifts and equal slopes as they are")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    from keras_binaryvit.deploy import inspect

    print("| preset | version | operators | bytes moved | file | conversion | LCE, CPU time | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, "first")
        first.mkdir()
        archive = subprocess.run(
            ["git", "archive", FIRST, "keras_binaryvit"], cwd=ROOT, check=True, capture_output=True
        )
        subprocess.run(["tar", "x", "-C", first], input=archive.stdout, check=True)
        for preset in arguments.presets:
            files = [Path(folder, name) for name in ("first.tflite", "now.tflite")]
            took = [
                convert(package, preset, file, arguments.untrained)
                for package, file in zip((first, ROOT), files, strict=True)
            ]
            flatbuffers = [file.read_bytes() for file in files]
            medians = latencies(flatbuffers, arguments.rounds)
            for version, flatbuffer, seconds, median in zip(("first", "now"), flatbuffers, took, medians, strict=True):
                inspection = inspect(flatbuffer)
                cost = inspection.total
                print(
                    f"| `{preset}` | {version} | {len(inspection.operators):,} | {cost.bytes_moved / 1e6:,.1f} MB | "
                    f"{len(flatbuffer) / 1e6:.2f} MB | {seconds} | {median:.2f} ms | {median / medians[0]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
