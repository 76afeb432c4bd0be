"""binaryvit_runtime.h: compiles as C and C++, and says what the library does."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from binaryvit_runtime import include_path, library_path
from conftest import available_kernels

STANDARDS = [("cc", "-std=c99"), ("cc", "-std=c17"), ("c++", "-std=c++11"), ("c++", "-std=c++20")]


@pytest.mark.parametrize("compiler, standard", STANDARDS)
def test_programs_compile_link_and_run(compiler, standard, tmp_path):
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} isn't installed")
    library = library_path()
    language = "c" if compiler == "cc" else "c++"
    flags = [standard, "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{include_path()}"]
    source = Path(__file__).with_name("header_test.c")
    program = tmp_path / "program"
    # `-x none`: what follows is a library again.
    command = [compiler, *flags, "-x", language, source, "-x", "none", "-o", program, library]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "BINARYVIT_KERNELS": ""}
    done = subprocess.run([program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines == [
        f"{available_kernels()[-1]} kernels, 0 operators",
        "binaryvit: num_threads must be 1 to 64, but is '0'",
        "binaryvit: profile must be 0 or 1, but is '2'",
    ]
