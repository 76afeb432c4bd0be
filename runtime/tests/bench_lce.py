"""Compares LiteRT with the delegate and LCE's interpreter: `python tests/bench_lce.py MODEL.tflite`.

Both run by turns at their best settings, on one thread, and CPU time counts, whatever else the machine does.
`--kernels` compares kernel sets, and `--threads` prints wall-clock times of the delegate with more threads.
"""

import argparse
import os
import time

import numpy as np
from binaryvit_runtime import Interpreter


def medians(functions, rounds, clock=time.thread_time):
    """Returns the median milliseconds of each function, called by turns."""
    times = []
    for _ in range(rounds + 2):
        for function in functions:
            start = clock()
            function()
            times.append(clock() - start)
    return np.median(np.reshape(times, (rounds + 2, -1))[2:], axis=0) * 1000


def main():
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--kernels", nargs="*", default=[], help="such as avx2 sse")
    parser.add_argument("--threads", nargs="*", type=int, default=[])
    arguments = parser.parse_args()
    import larq_compute_engine as lce

    content = open(arguments.model, "rb").read()
    larq = lce.testing.Interpreter(content, num_threads=1, use_indirect_bgemm=True, use_xnnpack=True)
    image = np.random.default_rng(0).normal(size=larq.input_shapes[0]).astype(np.float32)
    names, functions = ["LCE"], [lambda: larq.predict(image)]
    for kernels in ["", *arguments.kernels]:
        os.environ["BINARYVIT_KERNELS"] = kernels
        interpreter = Interpreter(content)
        names.append(f"LiteRT with the delegate{kernels and f', {kernels} kernels'}")
        functions.append(lambda interpreter=interpreter: interpreter.predict(image))
    os.environ["BINARYVIT_KERNELS"] = ""
    times = medians(functions, arguments.rounds)
    print("| interpreter | CPU time | LCE's time / this |\n|---|---|---|")
    for name, value in zip(names, times, strict=True):
        print(f"| {name} | {value:.2f} ms | {times[0] / value:.2f} |")

    if arguments.threads:
        interpreters = [Interpreter(content, count) for count in arguments.threads]
        functions = [lambda interpreter=interpreter: interpreter.predict(image) for interpreter in interpreters]
        print("\n| threads | wall-clock time |\n|---|---|")
        for count, value in zip(
            arguments.threads, medians(functions, arguments.rounds, time.perf_counter), strict=True
        ):
            print(f"| {count} | {value:.2f} ms |")


if __name__ == "__main__":
    main()
