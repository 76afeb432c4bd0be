"""What the delegate tells of itself: its kernels, and how long each operator took."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).with_name("libbinaryvit_runtime" + (".dylib" if sys.platform == "darwin" else ".so"))


@dataclasses.dataclass(frozen=True)
class OperatorTime:
    """What one operator of the graph took.

    Attributes:
        op: Such as `"LceBconv2d"`.
        output: Name of its output tensor, which tells its layer.
        calls: How many times it ran.
        nanoseconds: Wall-clock time of all calls.
    """

    op: str
    output: str
    calls: int
    nanoseconds: int


class _Entry(ctypes.Structure):  # BinaryVitProfileEntry
    _fields_ = [
        ("op", ctypes.c_char_p),
        ("output", ctypes.c_char_p),
        ("calls", ctypes.c_uint64),
        ("nanoseconds", ctypes.c_uint64),
    ]


@functools.cache
def _library():
    library = ctypes.CDLL(str(LIBRARY))
    library.binaryvit_kernels.argtypes = [ctypes.c_void_p]
    library.binaryvit_kernels.restype = ctypes.c_char_p
    library.binaryvit_profile.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Entry), ctypes.c_size_t]
    library.binaryvit_profile.restype = ctypes.c_size_t
    return library


def kernels_of(delegate: Any) -> str:
    """Returns the name of the kernels that a delegate of `load_delegate` runs."""
    return _library().binaryvit_kernels(delegate._get_native_delegate_pointer()).decode()


def read_profile(delegate: Any) -> list[OperatorTime]:
    """Returns what each operator took, of a delegate of `load_delegate` whose interpreter is still there."""
    pointer = delegate._get_native_delegate_pointer()
    count = _library().binaryvit_profile(pointer, None, 0)
    entries = (_Entry * count)()
    _library().binaryvit_profile(pointer, entries, count)
    return [
        OperatorTime(entry.op.decode(), entry.output.decode("utf-8", "replace"), entry.calls, entry.nanoseconds)
        for entry in entries
    ]
