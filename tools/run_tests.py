"""Runs the parts of `make test`, each whatever became of the others, and ends with a table of them all.

python tools/run_tests.py                    # every part but `fast`
python tools/run_tests.py lint types fast    # these
python tools/run_tests.py --again            # on another Python: what may differ there
"""

import argparse
import collections
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The table is kept in the virtual environment that it is about.
TABLE = Path(sys.prefix, "tests.txt")
PACKAGES = ("keras", "numpy", "tensorflow", "jax", "torch", "larq", "larq-compute-engine")


@dataclasses.dataclass(frozen=True)
class Part:
    """Commands that run after one another.

    Attributes:
        commands: Arguments of each; `pytest` stands for this Python's, with two workers.
        backend: What Keras computes with; None leaves the choice to the tests.
        folder: Where the commands run, relative to the repository.
        needs: A module without which the part is skipped, and the reason for it.
        once: Whether it says the same on every Python. So do tests that are marked with `once`.
    """

    commands: tuple[tuple[str, ...], ...]
    backend: str | None = None
    folder: str = "."
    needs: tuple[str, str] | None = None
    once: bool = False


def _files(folder: str, names: str) -> list[str]:
    return [f"{folder}/test_{name}.py" for name in names.split()]


# Where a sign hangs on rounding.
ROUNDED = (*_files("tests/layers", "attention normalization"), *_files("tests/deploy", "lower runtime_layers"))
# What no version of Python changes: builds for ARM and Android, on an emulated board and a JVM, and programs in C++.
NATIVE = (*_files("tests", "android arm64 header kotlin thread_pool"), "tests/fuzz")
BACKENDS = ("tests/layers", "tests/models", "tests/test_quantizers.py", "tests/torch_checkpoints")
PYTHON = (sys.executable, "-m")
PARTS = {
    "lint": Part(((*PYTHON, "ruff", "check", "."), (*PYTHON, "ruff", "format", "--check", ".")), once=True),
    "types": Part(((*PYTHON, "mypy"),)),  # NumPy's hints, which differ by version, decide
    "docs": Part((("make", "--silent", "docs"),), needs=("mkdocs", "MkDocs can't be installed"), once=True),
    # Files that take seconds, of every area. Left out: what trains, starts processes, or builds whole networks.
    "fast": Part(
        (
            (
                "pytest",
                "--ignore=tests/layers/test_rematerialization.py",
                "tests/layers",
                *_files("tests", "constraints files metrics quantizers visualize"),
                *_files("tests/torch_checkpoints", "state_dicts weight_names"),
                *_files(
                    "tests/deploy", "binary compare elementary flatbuffer fold inspect interpreters lce_layers report"
                ),
                *_files("tests/training", "callbacks losses schedules teachers"),
            ),
        ),
        "tensorflow",
    ),
    # Its own row: tests of conversion run what it builds, and the others needn't wait for a compiler that isn't there.
    "runtime's build": Part((("make", "--silent", f"{os.environ.get('VENV', '.venv')}/.runtime"),)),
    "TensorFlow": Part((("pytest",),), "tensorflow"),
    # Two runs, so that the memory of a worker stays below 5 GB.
    "JAX": Part(
        (
            ("pytest", *BACKENDS),
            (
                "pytest",
                "tests/test_optimizers.py",
                *_files("tests/training", "losses distiller callbacks checkpoint"),
            ),
        ),
        "jax",
    ),
    # Conversion computes with NumPy and TensorFlow; JAX runs the models that it compares.
    "JAX, frozen": Part(
        (("pytest", *_files("tests/deploy", "fold freeze lce_layers lower opened")),), "jax", once=True
    ),
    "TensorFlow, perturbed": Part((("pytest", "--perturb", *ROUNDED),), "tensorflow", once=True),
    "JAX, perturbed": Part((("pytest", "--perturb", *ROUNDED),), "jax", once=True),
    "PyTorch": Part((("pytest", *BACKENDS),), "torch", needs=("torch", "no CPU build of PyTorch")),
    "runtime": Part((("pytest", *(f"--ignore={file}" for file in NATIVE)),), folder="runtime"),
    "native": Part((("pytest", *NATIVE),), folder="runtime", once=True),
}


@dataclasses.dataclass
class Result:
    """What became of a part: numbers of tests, or of commands that hold none."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    failures: list[str] = dataclasses.field(default_factory=list)

    def add(self, command: str, status: int, report: Path) -> None:
        """Counts a command by its report, or as one check where it wrote none."""
        failed = len(self.failures)
        cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
        for case in cases:
            skip = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                self.failures.append(f"{case.get('classname')}::{case.get('name')}")
            elif skip is not None:
                self.skipped += 1
                self.reasons[_reason(skip)] += 1
            else:
                self.passed += 1
        if status and len(self.failures) == failed:  # no test failed, but their run did
            self.failures.append(command)
        elif not status and not report.exists():
            self.passed += 1
        self.failed = len(self.failures)


def _reason(skip: ElementTree.Element) -> str:
    if skip.get("message") != "collection skipped":
        return skip.get("message", "")
    return (skip.text or "").partition("Skipped: ")[2].rstrip("\"')")  # a whole file: (path, line, "Skipped: reason")


def run(part: Part, folder: Path, again: bool) -> Result:
    """Runs a part, with reports in `folder`, and counts; `again` leaves out tests that are marked with `once`."""
    result = Result()
    if part.needs and importlib.util.find_spec(part.needs[0]) is None:
        result.reasons[part.needs[1]] = 1
        return result
    environment = {**os.environ, **({"KERAS_BACKEND": part.backend} if part.backend else {})}
    start = time.monotonic()
    for number, command in enumerate(part.commands):
        report = folder / f"{number}.xml"
        report.unlink(missing_ok=True)
        arguments = list(command)
        if command[0] == "pytest":
            arguments = [*PYTHON, "pytest", "-n", "2", "--dist", "worksteal", f"--junitxml={report}", *command[1:]]
            arguments += ["-m", "not once"] if again else []
        status = subprocess.run(arguments, cwd=ROOT / part.folder, env=environment).returncode
        result.add(" ".join(command), status, report)
    result.seconds = time.monotonic() - start
    return result


def table(results: dict[str, Result]) -> str:
    """Returns the table, and below it what failed, how often what was skipped, and the sums as pytest's last line."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    lines = [f"Python {platform.python_version()}, {', '.join(versions)}", ""]
    lines.append(f"{'part':<17}{'passed':>8}{'failed':>8}{'skipped':>9}{'time':>9}")
    for name, result in results.items():
        if result.passed or result.failed or result.skipped:
            counts = f"{result.passed:>8}{result.failed:>8}{result.skipped:>9}{result.seconds:>7.0f} s"
        else:
            counts = f"   skipped: {', '.join(result.reasons)}"
        lines.append(f"{name:<17}{counts}")
    failures = [f"{name}: {failure}" for name, result in results.items() for failure in result.failures]
    if failures:
        lines += ["", "Failed:", *(f"    {failure}" for failure in failures)]
    reasons = sum((result.reasons for result in results.values()), collections.Counter())
    if reasons:
        lines += ["", "Skipped:", *(f"{count:>6}  {reason}" for reason, count in reasons.most_common())]
    everything = results.values()
    sums = {what: sum(getattr(result, what) for result in everything) for what in ("failed", "passed", "skipped")}
    seconds = sum(result.seconds for result in everything)
    lines += ["", f"{', '.join(f'{count} {what}' for what, count in sums.items())} in {seconds:.0f} s"]
    return "\n".join(lines)


def main() -> None:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to run, of: {', '.join(PARTS)}")
    parser.add_argument("--again", action="store_true", help="leave out what says the same on every Python")
    options = parser.parse_args()
    every = [name for name, part in PARTS.items() if name != "fast" and not (options.again and part.once)]
    names = options.parts or every
    if unknown := set(names) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))} (choose from {', '.join(PARTS)})")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(f"\n=== {name} ===", flush=True)
            results[name] = run(PARTS[name], Path(folder), options.again)
    text = table(results)
    TABLE.write_text(f"{text}\n", encoding="utf-8")
    print(f"\n{text}", flush=True)
    sys.exit(any(result.failed for result in results.values()))


if __name__ == "__main__":
    main()
