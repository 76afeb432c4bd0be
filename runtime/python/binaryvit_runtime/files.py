"""map_model: the content of a model, without a copy of the file."""

from __future__ import annotations

import mmap
import os


def map_model(model: str | os.PathLike | bytes) -> bytes | mmap.mmap:
    """Returns the content of a `.tflite` model, given as a path or as bytes; a file is mapped, not read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no TFLite flatbuffer.
    """
    content: bytes | mmap.mmap
    if isinstance(model, (bytes, bytearray, memoryview)):
        content = bytes(model)
    elif not os.path.isfile(model):
        raise FileNotFoundError(f"There is no model file {os.fspath(model)!r}.")
    elif os.path.getsize(model) == 0:  # can't be mapped
        content = b""
    else:
        with open(model, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if content[4:8] != b"TFL3":
        raise ValueError(f"This is no TFLite flatbuffer: {len(content)} bytes that begin {content[:8]!r}")
    return content
