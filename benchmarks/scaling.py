"""Prints how training on several devices compares with one: `python benchmarks/scaling.py`.

The devices are virtual ones of this machine's CPU and share its cores, so the ratios say what distribution costs, not
what it gains.
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

WORKER = Path(__file__).resolve().parents[1] / "tests" / "training" / "scaling_worker.py"
BATCH_SIZE = 16  # the worker's
SETTINGS = {
    "jax": {"1 device": ("--devices", 1), "2 devices": ("--devices", 2), "2 processes": ("--devices", 1)},
    "tensorflow": {"1 device": ("--devices", 1), "2 replicas": ("--devices", 2)},
}


def run(backend, arguments, processes):
    """Returns the first process' record."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = str(WORKER.parents[2])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{process}.npz" for process in range(processes)]
        running = []
        for process, file in enumerate(files):
            command = [sys.executable, WORKER, file, "--processes", processes, "--process", process, *arguments]
            command += ["--address", address, "--steps", 30, "--image-size", 16, "--channels", 32]
            running.append(subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.DEVNULL))
        if any([process.wait() for process in running]):
            raise SystemExit(f"{backend}, {arguments}, {processes} processes: a worker failed; run it to see why")
        return dict(np.load(files[0]))


def main():
    """Runs one setting after the other and prints a row for each."""
    print("| backend | setting | largest difference of the loss, 30 steps | images/s | ratio |\n|---|---|---|---|---|")
    for backend, settings in SETTINGS.items():
        one = None
        for name, arguments in settings.items():
            record = run(backend, arguments, 2 if name == "2 processes" else 1)
            speed = BATCH_SIZE / np.median(record["seconds"][2:])
            one = one or (record["loss"], speed)
            difference = np.abs(record["loss"] - one[0]).max()
            print(f"| {backend} | {name} | {difference:.1e} | {speed:.0f} | {speed / one[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
