"""The library shows its four functions and nothing else, and asks for an old glibc alone."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from binaryvit_runtime import library_path

FUNCTIONS = {
    "binaryvit_kernels",
    "binaryvit_profile",
    "tflite_plugin_create_delegate",
    "tflite_plugin_destroy_delegate",
}
MACHINES = {"x86_64": "X86-64", "aarch64": "AArch64"}

if not shutil.which("readelf"):
    pytest.skip("readelf isn't installed; apt-get install binutils", allow_module_level=True)


def readelf(option, library):
    return subprocess.run(["readelf", "-W", option, library], check=True, capture_output=True, text=True).stdout


def check_library(library, machine):
    assert MACHINES[machine] in readelf("-h", library)
    symbols = [line.split() for line in readelf("--dyn-syms", library).splitlines() if re.match(r"\s*\d+:", line)]
    exported = {symbol[7] for symbol in symbols if symbol[6] != "UND" and symbol[4] != "LOCAL"}
    assert exported == FUNCTIONS
    # Everything else comes from glibc 2.17 or an older one.
    wanted = [symbol[7] for symbol in symbols if symbol[6] == "UND" and len(symbol) > 7 and symbol[4] != "WEAK"]
    versions = [re.fullmatch(r"\w+@GLIBC_(\d+)\.(\d+)(\.\d+)?", name) for name in wanted]
    assert wanted and all(versions), wanted
    assert max((int(match[1]), int(match[2])) for match in versions) <= (2, 17)
    dynamic = readelf("-d", library)
    assert "[libbinaryvit_runtime.so]" in dynamic
    assert set(re.findall(r"Shared library: \[(.*)\]", dynamic)) <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}


def test_the_installed_library():
    check_library(library_path(), platform.machine())


def test_other_machines_are_refused(tmp_path):
    script = Path(__file__).parents[1] / "wheels.sh"
    done = subprocess.run([script, tmp_path, "riscv64"], capture_output=True, text=True)
    assert done.returncode != 0 and f"no way from {platform.machine()} to riscv64" in done.stderr
