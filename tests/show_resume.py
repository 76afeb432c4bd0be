"""Kills training with SIGKILL in the middle of an epoch, continues it, and compares: `python tests/show_resume.py`."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

WORKER = Path(__file__).resolve().parent / "training" / "resume_worker.py"


def run(*arguments, backend):
    """Returns the worker's exit status and the lines that it prints, as a dictionary by their first word."""
    path = os.pathsep.join(map(str, (WORKER.parents[2], WORKER.parents[1])))
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": path}
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.returncode, lines(done.stdout)


def lines(text):
    """Returns the worker's lines as a dictionary by their first word."""
    return dict(line.split(" ", 1) for line in text.splitlines())


def kill_and_resume(folder, backend, epoch=1, step=1):
    """Returns what a run prints that was killed in `epoch` and continued."""
    status, _ = run(folder, epoch, step, backend=backend)
    if status != -signal.SIGKILL:
        raise RuntimeError(f"The worker wasn't killed: it ended with {status}.")
    return run(folder, backend=backend)[1]


def main():
    for backend in sys.argv[1:] or ["tensorflow", "jax"]:
        with tempfile.TemporaryDirectory() as folder:
            _, whole = run(Path(folder, "whole"), backend=backend)
            resumed = kill_and_resume(Path(folder, "killed"), backend)
        print(f"{backend}: SHA-256 of the final weights and optimizer state")
        print(f"  uninterrupted                                {whole['digest']}")
        print(f"  killed in epoch 2 of 3, continued after {resumed['restored']}    {resumed['digest']}")


if __name__ == "__main__":
    main()
