import fcntl
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The kernel set is the same for all examples of a test, so a fixture may set it.
settings.register_profile("runtime", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("runtime")

RUNTIME = Path(__file__).parents[1]
SETS = {"x86_64": ["scalar", "sse", "avx2", "avx512bw", "avx512"], "aarch64": ["scalar", "neon", "dotprod"]}


def available_kernels():
    """Returns the kernel sets that this processor runs, as the delegate says."""
    from binaryvit_runtime import load_delegate

    names = []
    with pytest.MonkeyPatch.context() as patch:
        for name in SETS.get(platform.machine(), ["scalar"]):
            patch.setenv("BINARYVIT_KERNELS", name)
            try:
                load_delegate()
            except ValueError:
                continue
            names.append(name)
    return names


def pytest_generate_tests(metafunc):
    if "kernels" in metafunc.fixturenames:
        metafunc.parametrize("kernels", available_kernels(), indirect=True)


@pytest.fixture
def kernels(request, monkeypatch):
    """Runs the test with each kernel set."""
    monkeypatch.setenv("BINARYVIT_KERNELS", request.param)
    return request.param


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Returns a function that lets `make` fill a folder, once for all of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def build(name, make):
        folder = base / name
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "done").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                (folder / "done").touch()
        return folder

    return build


@pytest.fixture(scope="session")
def aarch64_wheel(built):
    """A folder with the wheel for 64-bit ARM, and what is in it under `content`."""
    for tool in ("aarch64-linux-gnu-g++", "cmake"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} isn't installed; apt-get install g++-aarch64-linux-gnu libc6-dev-arm64-cross cmake")

    def make(folder):
        environment = {**os.environ, "PYTHON": sys.executable}
        done = subprocess.run(
            [RUNTIME / "wheels.sh", folder, "aarch64"], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        (wheel,) = folder.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(folder / "content")

    return built("aarch64", make)


@pytest.fixture(scope="session")
def aar(built):
    """A folder with what android/aar.py builds, and what is in the archive under `content`."""
    for path in ("/usr/lib/llvm-19/bin/ld.lld", "/usr/include/x86_64-linux-musl", "/usr/lib/llvm-19/include/c++/v1"):
        if not Path(path).exists():
            pytest.skip(f"there is no {path}; docs/android.md says what to install")
    kotlin = subprocess.run([RUNTIME / "android" / "kotlinc.sh", "-version"], capture_output=True, text=True)
    if kotlin.returncode or not shutil.which("javac"):
        pytest.skip(f"Kotlin can't be compiled; docs/android.md says what to install. {kotlin.stderr[-200:]}")

    def make(folder):
        command = [sys.executable, RUNTIME / "android" / "aar.py", folder]
        environment = {name: value for name, value in os.environ.items() if name != "ANDROID_NDK_HOME"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        zipfile.ZipFile(folder / "binaryvit-runtime.aar").extractall(folder / "content")

    return built("aar", make)
