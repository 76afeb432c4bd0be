"""read_model: the bytes of a model."""

from __future__ import annotations

import os
from pathlib import Path


def read_model(model: str | os.PathLike | bytes) -> bytes:
    """Returns the bytes of a `.tflite` file, of which a path or the bytes themselves are given.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no TFLite flatbuffer.
    """
    if isinstance(model, (bytes, bytearray, memoryview)):
        content = bytes(model)
    elif os.path.isfile(model):
        content = Path(model).read_bytes()
    else:
        raise FileNotFoundError(f"There is no model file {os.fspath(model)!r}.")
    if content[4:8] != b"TFL3":
        raise ValueError(f"This is no TFLite flatbuffer: {len(content)} bytes that begin {content[:8]!r}")
    return content
