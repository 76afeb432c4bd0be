"""The sources compile for arm64 macOS, with LLVM's C++ headers and the C headers of POSIX in place of Apple's."""

import subprocess
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[1]
LLVM = Path("/usr/lib/llvm-19")
MUSL = Path("/usr/include/x86_64-linux-musl")
# Of musl's headers, those that macOS lacks.
LINUX = ["elf.h", "endian.h", "link.h", "malloc.h", "sys/auxv.h", "sys/epoll.h", "sys/eventfd.h", "sys/prctl.h"]


def test_the_sources_compile_for_macos(tmp_path):
    for path in (LLVM / "bin" / "clang++", LLVM / "include" / "c++" / "v1", MUSL):
        if not path.exists():
            pytest.skip(f"there is no {path}; apt-get install clang-19 libc++-19-dev musl-dev")
    (tmp_path / "sys").mkdir()
    for header in LINUX:
        (tmp_path / header).write_text("#error there is no such header on macOS\n")
    headers = [LLVM / "include" / "c++" / "v1", tmp_path, MUSL]
    flags = ["--target=arm64-apple-macos12", "-std=c++17", "-fsyntax-only", "-nostdinc++", "-nostdlibinc"]
    flags += [flag for folder in headers for flag in ("-isystem", folder)]
    libcxx = ["-D_LIBCPP_PROVIDES_DEFAULT_RUNE_TABLE", "-D_LIBCPP_REMOVE_TRANSITIVE_INCLUDES"]
    flags += ["-D_POSIX_C_SOURCE=200809L", *libcxx]
    flags += ["-Wall", "-Wextra", "-Werror", "-fno-exceptions", "-fno-rtti"]
    flags += [f"-I{RUNTIME / 'include'}", f"-I{RUNTIME / 'src'}", "-include", RUNTIME / "src" / "base" / "glibc.h"]
    sources = [path for path in sorted((RUNTIME / "src").rglob("*.cc")) if path.parent.name != "x86"]
    done = subprocess.run([LLVM / "bin" / "clang++", *flags, *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
