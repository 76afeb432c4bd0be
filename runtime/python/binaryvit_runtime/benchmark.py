"""binaryvit-benchmark: how long an inference takes, and which operators take it."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from binaryvit_runtime.interpreter import Interpreter
from binaryvit_runtime.profile import OperatorTime

_REST = "LiteRT and XNNPACK"
_SLOWEST = 10


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The inferences of one model with one number of threads.

    Attributes:
        model: Its path.
        size: Of the file, in bytes.
        threads: Threads that shared each inference.
        times: Milliseconds of each inference.
        copies: Milliseconds that copying its inputs and outputs took.
        operators: What each binary operator took in all of them; empty without profile.
    """

    model: str
    size: int
    threads: int
    times: np.ndarray
    copies: np.ndarray
    operators: list[OperatorTime]

    @property
    def median(self) -> float:
        """The median of all times."""
        return float(np.median(self.times))

    def summary(self) -> dict[str, float]:
        """Returns the mean, median and percentiles in milliseconds."""
        p10, p50, p90, p99 = (float(value) for value in np.percentile(self.times, [10, 50, 90, 99]))
        return {"mean": float(self.times.mean()), "median": p50, "p10": p10, "p90": p90, "p99": p99}


def measure(
    models: list[str], threads: int, runs: int, warm_up: int, profile: bool, progress: Callable[[int], object]
) -> list[Measurement]:
    """Runs the models alternately, so that other load on the machine affects all of them alike.

    Args:
        models: Paths of `.tflite` files.
        threads: Threads that share an inference.
        runs: Inferences of each model to measure.
        warm_up: Inferences of each before those.
        profile: Whether to measure the operators.
        progress: Called with the number of inferences that are done.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no model.
        RuntimeError: The model has an operator that is unknown or wrong.
    """
    interpreters = [Interpreter(model, threads, profile) for model in models]
    rng = np.random.default_rng(0)
    images = [
        [_random(rng, shape, dtype) for shape, dtype in zip(interpreter.input_shapes, interpreter.input_dtypes)]
        for interpreter in interpreters
    ]
    times, copies = np.zeros((2, len(models), runs))
    before = [interpreter.profile() for interpreter in interpreters]
    for run in range(-warm_up, runs):
        if run == 0:
            before = [interpreter.profile() for interpreter in interpreters]
        for index, interpreter in enumerate(interpreters):
            start = time.perf_counter()
            interpreter.predict(images[index])
            if run >= 0:
                times[index, run] = interpreter.seconds
                copies[index, run] = time.perf_counter() - start - interpreter.seconds
            progress(1)
    return [
        Measurement(
            model,
            os.path.getsize(model),
            threads,
            times[index] * 1000,
            copies[index] * 1000,
            _difference(interpreters[index].profile(), before[index]),
        )
        for index, model in enumerate(models)
    ]


def _random(rng, shape, dtype):
    if dtype.kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    return rng.integers(0, 128, shape).astype(dtype)


def _difference(after, before):
    return [
        dataclasses.replace(now, calls=now.calls - then.calls, nanoseconds=now.nanoseconds - then.nanoseconds)
        for now, then in zip(after, before)  # noqa: B905 - Python 3.9 has no `strict`; there are as many of both
    ]


def peak_memory() -> int:
    """Returns the largest resident memory that this process has had, in bytes."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # On Linux that figure begins with the one of the process which started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _table(rows):
    """Returns lines of columns, the first aligned left and the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0])] + [row[i].rjust(widths[i]) for i in range(1, len(row))]).rstrip()
        for row in rows
    )


def _times_table(measurements, models):
    rows = [["model", "MB", "threads", "median", "p10", "p90", "p99", "copies", "inferences/s"]]
    firsts = {result.threads: result.median for result in reversed(measurements) if result.model == models[0]}
    if len(models) > 1:
        rows[0].append("time / first")
    for result in measurements:
        summary = result.summary()
        row = [os.path.basename(result.model), f"{result.size / 1e6:.2f}", str(result.threads)]
        row += [f"{summary[name]:.3f} ms" for name in ("median", "p10", "p90", "p99")]
        row += [f"{np.median(result.copies):.3f} ms", f"{1000 / result.median:.1f}"]
        if len(models) > 1:
            row.append(f"{result.median / firsts[result.threads]:.2f}")
        rows.append(row)
    return _table(rows)


def _profile_tables(result):
    """Returns what the operators of a kind take, and the slowest of all, in means over the inferences."""
    runs, mean = len(result.times), float(result.times.mean())
    kinds: dict[str, list] = collections.defaultdict(lambda: [0, 0.0])
    for operator in result.operators:
        kinds[operator.op][0] += 1
        kinds[operator.op][1] += operator.nanoseconds / runs / 1e6
    slowest_kinds = sorted(kinds.items(), key=lambda item: -item[1][1])
    rest = mean - sum(spent for _, (_, spent) in slowest_kinds)
    rows = [["operators", "number", "ms", "share"]]
    rows += [[name, str(number), f"{spent:.3f}", f"{spent / mean:.1%}"] for name, (number, spent) in slowest_kinds]
    rows += [[_REST, "", f"{rest:.3f}", f"{rest / mean:.1%}"], ["an inference", "", f"{mean:.3f}", "100.0%"]]
    slowest = sorted(result.operators, key=lambda operator: -operator.nanoseconds)[:_SLOWEST]
    slow_rows = [["slowest, with their outputs", "ms", "share"]]
    for operator in slowest:
        spent = operator.nanoseconds / runs / 1e6
        slow_rows.append([f"{operator.op}  {operator.output}", f"{spent:.3f}", f"{spent / mean:.1%}"])
    title = f"{os.path.basename(result.model)}, {result.threads} thread{'s' * (result.threads > 1)}, means"
    return "\n\n".join([title, _table(rows)] + ([_table(slow_rows)] if slowest else []))


def _counts(text):
    try:
        counts = [int(value) for value in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} isn't whole numbers with commas between them") from None
    if len(set(counts)) != len(counts) or not all(1 <= count <= 64 for count in counts):
        raise argparse.ArgumentTypeError(f"{text!r} must be different numbers from 1 to 64")
    return counts


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="binaryvit-benchmark", description="Measures how long an inference takes, on random input."
    )
    parser.add_argument("model", help="the .tflite file")
    parser.add_argument("--compare", metavar="OTHER", help="another .tflite file, run alternately with the first")
    parser.add_argument(
        "--threads", type=_counts, default=[1], help="one number or several, such as 1,2,4 (default: 1)"
    )
    parser.add_argument("--runs", type=int, default=50, help="inferences to measure (default: 50)")
    parser.add_argument("--warm-up", type=int, default=5, help="inferences before those (default: 5)")
    parser.add_argument("--profile", action="store_true", help="print what each kind of operator takes")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error(f"--runs must be positive, but is {options.runs}")
    if options.warm_up < 0:
        parser.error(f"--warm-up must not be negative, but is {options.warm_up}")
    return options


class _Progress:
    """A bar on stderr, where that is a terminal."""

    def __init__(self, total: int):
        self._total, self._done, self._shown = total, 0, -1
        self._visible = sys.stderr.isatty()

    def __call__(self, steps: int) -> None:
        self._done += steps
        percent = 100 * self._done // self._total
        if self._visible and percent != self._shown:
            self._shown = percent
            print(f"\r[{'=' * (percent // 4):25}] {percent:3} %", end="", file=sys.stderr, flush=True)

    def clear(self):
        if self._visible and self._done:
            print(f"\r{'':33}\r", end="", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints.

    Returns:
        The exit status: 0, or 1 if anything went wrong, or 130 after Ctrl-C.
    """
    options = parse_arguments(arguments)
    models = [options.model] + ([options.compare] if options.compare else [])
    memory_before = peak_memory()
    progress = _Progress(len(options.threads) * len(models) * (options.warm_up + options.runs))
    measurements = []
    try:
        for threads in options.threads:
            measurements += measure(models, threads, options.runs, options.warm_up, options.profile, progress)
        kernels = Interpreter(options.model).kernels
    except (OSError, ValueError, RuntimeError) as error:
        progress.clear()
        print(f"binaryvit-benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.clear()
        print("binaryvit-benchmark: interrupted", file=sys.stderr)
        return 130
    progress.clear()
    memory = peak_memory()
    litert = importlib.metadata.version("ai-edge-litert")
    if options.json:
        results = []
        for result in measurements:
            entry = {"model": result.model, "bytes": result.size, "threads": result.threads}
            entry["milliseconds"] = {**result.summary(), "copies": float(np.median(result.copies))}
            if options.profile:
                entry["operators"] = [dataclasses.asdict(operator) for operator in result.operators]
            results.append(entry)
        settings = {"kernels": kernels, "ai-edge-litert": litert, "processors": os.cpu_count()}
        settings |= {"runs": options.runs, "warm_up": options.warm_up}
        memories = {"peak_memory_bytes": memory, "memory_before_models_bytes": memory_before}
        print(json.dumps({**settings, **memories, "results": results}, indent=2))
        return 0
    print(_times_table(measurements, models))
    print(
        f"\n{options.runs} inferences of each, {kernels} kernels, ai-edge-litert {litert}, {os.cpu_count()} processors"
    )
    print(f"Peak memory {memory / 1e6:.1f} MB, of which Python had {memory_before / 1e6:.1f} MB before")
    if options.profile:
        for result in measurements:
            print(f"\n{_profile_tables(result)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
