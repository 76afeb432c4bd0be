"""Kills training with SIGKILL in the middle of an epoch, continues it, and compares: `python tools/show_resume.py`."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

WORKER = Path(__file__).resolve().parents[1] / "tests" / "training" / "resume_worker.py"


def run(*arguments, backend):
    """Returns the worker's exit status and the lines that it prints, as a dictionary by their first word."""
    path = os.pathsep.join(map(str, (WORKER.parents[2], WORKER.parents[1])))
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": path}
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.returncode, dict(line.split(" ", 1) for line in done.stdout.splitlines())


def compare(folder, backend, epoch=1, step=1):
    """Returns what an uninterrupted run prints, and what one prints that was killed in `epoch` and continued."""
    _, whole = run(folder / "whole", backend=backend)
    status, _ = run(folder / "killed", epoch, step, backend=backend)
    if status != -signal.SIGKILL:
        raise RuntimeError(f"The worker wasn't killed: it ended with {status}.")
    _, resumed = run(folder / "killed", backend=backend)
    return whole, resumed


def main():
    for backend in sys.argv[1:] or ["tensorflow", "jax"]:
        with tempfile.TemporaryDirectory() as folder:
            whole, resumed = compare(Path(folder), backend)
        print(f"{backend}: SHA-256 of the final weights and optimizer state")
        print(f"  uninterrupted                                {whole['digest']}")
        print(f"  killed in epoch 2 of 3, continued after {resumed['restored']}    {resumed['digest']}")


if __name__ == "__main__":
    main()
