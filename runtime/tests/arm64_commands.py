"""Runs the commands of docs/raspberry_pi.md that install nothing, on the emulated board: arm64_commands.py FOLDER.

FOLDER has `model.tflite`, `photo.jpg` and a module `picamera2`.
"""

import os
import re
import runpy
import shlex
import sys
from pathlib import Path

from binaryvit_runtime import benchmark, run

ROOT = Path(__file__).parents[2]
COMMANDS = {"binaryvit-run": run.main, "binaryvit-benchmark": benchmark.main}


def main():
    os.chdir(sys.argv[1])
    sys.path.insert(0, sys.argv[1])
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs" / "raspberry_pi.md").read_text(), re.M | re.S)
    for line in "".join(blocks).splitlines():
        name, *arguments = shlex.split(line)
        if name not in COMMANDS and not arguments[0].startswith("examples/"):
            continue
        print(f"$ {line}", flush=True)
        if name in COMMANDS:
            sys.argv = [name, *arguments]
            if status := COMMANDS[name]():
                sys.exit(status)
        else:
            sys.argv = arguments
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")


if __name__ == "__main__":
    main()
