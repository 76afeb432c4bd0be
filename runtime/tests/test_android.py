"""examples/android: the JNI library has the functions that the Kotlin class declares, and compiles."""

import glob
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from binaryvit_runtime import include_path, library_path

SOURCES = Path(__file__).parents[2] / "examples" / "android" / "app" / "src" / "main"
KOTLIN = SOURCES / "kotlin" / "org" / "binaryvit" / "classify" / "BinaryVitDelegate.kt"
HEADERS = sorted(glob.glob("/usr/lib/jvm/*/include/jni.h"))


@pytest.mark.skipif(not HEADERS or not shutil.which("c++"), reason="needs a JDK's jni.h and a compiler")
def test_the_jni_library(tmp_path):
    include = Path(HEADERS[0]).parent
    library = tmp_path / "libbinaryvit_android.so"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-Wl,-z,defs"]
    flags += [f"-I{folder}" for folder in (include, include / "linux", include_path())]
    source = SOURCES / "cpp" / "delegate_jni.cc"
    command = ["c++", *flags, source, library_path(), "-o", library]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    kotlin = KOTLIN.read_text()
    package = re.search(r"^package (.*)$", kotlin, re.M)[1].replace(".", "_")
    declared = re.findall(r"external fun (\w+)", kotlin)
    assert {f"Java_{package}_BinaryVitDelegate_{name}" for name in declared} == set(re.findall(r"Java_\w+", symbols))
    assert f'System.loadLibrary("{library.stem[len("lib") :]}")' in kotlin
