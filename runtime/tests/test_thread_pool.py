"""The thread pool under the thread sanitizer."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ isn't installed")
def test_loops_run_every_index_once_and_without_races(tmp_path):
    program = tmp_path / "thread_pool_test"
    sources = [HERE / "thread_pool_test.cc", HERE.parent / "src" / "base" / "thread_pool.cc"]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{HERE.parent / 'src'}"]
    subprocess.run(["g++", *flags, *sources, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
