"""read_metadata: what a `.tflite` file says of its images and classes.

The converter of keras_binaryvit writes it, as JSON in a buffer that the schema's list of metadata names `binaryvit`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct

from binaryvit_runtime.files import read_model
from binaryvit_runtime.preprocessing import Preprocessing

_NAME = b"binaryvit"
_VERSION = 1
_BUFFERS, _METADATA = 4, 6  # fields of the schema's Model


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a file says; `None` stands for what it doesn't.

    Attributes:
        preprocessing: How to make the model's input of an image.
        outputs: `"logits"` or `"probabilities"`.
        labels: The classes' names, in the order of the outputs.
    """

    preprocessing: Preprocessing | None = None
    outputs: str | None = None
    labels: tuple[str, ...] | None = None


def read_metadata(model: str | os.PathLike | bytes) -> Metadata:
    """Returns what a model says of its images and classes.

    Args:
        model: Path of a `.tflite` file, or its bytes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no TFLite flatbuffer, or damaged, or its metadata is of a newer version or makes no
            sense; the message says what.
    """
    text = _find(memoryview(read_model(model)))
    if text is None:
        return Metadata()
    try:
        content = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The model's metadata is damaged: {str(error)[:200]}") from error
    if not isinstance(content, dict) or not isinstance(content.get("version"), int):
        raise ValueError(f"The model's metadata is damaged: {text[:50]!r} has no version")
    if content["version"] > _VERSION:
        raise ValueError(
            f"The model's metadata is of version {content['version']}; this package reads version {_VERSION}. "
            "Install a newer binaryvit-runtime."
        )
    preprocessing = None
    if "mean" in content or "std" in content:
        names = ("mean", "std", "resize", "interpolation")
        try:
            preprocessing = Preprocessing(**{name: content[name] for name in names if name in content})
        except (TypeError, ValueError) as error:
            raise ValueError(f"The model's metadata is damaged: {error}") from error
    outputs, labels = content.get("outputs"), content.get("labels")
    if outputs not in (None, "logits", "probabilities"):
        raise ValueError(f"The model's metadata is damaged: outputs={str(outputs)[:50]!r}")
    if labels is not None:
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("The model's metadata is damaged: labels must be a list of texts")
        labels = tuple(labels)
    return Metadata(preprocessing, outputs, labels)


def _find(flatbuffer: memoryview) -> bytes | None:
    """Returns the content of the buffer that the list of metadata names, or `None`."""
    root = _indirect(flatbuffer, 0)
    for entry in _tables(flatbuffer, root, _METADATA):
        if _vector(flatbuffer, entry, 0) != _NAME:
            continue
        place = _field(flatbuffer, entry, 1)
        number = _number(flatbuffer, place, "<I") if place else 0
        for index, buffer in enumerate(_tables(flatbuffer, root, _BUFFERS)):
            if index == number:
                return bytes(_vector(flatbuffer, buffer, 0))
        raise ValueError(f"The model is damaged: its metadata is in buffer {number}, which it doesn't have")
    return None


def _number(flatbuffer, position, code):
    end = position + struct.calcsize(code)
    if not 0 <= position <= end <= len(flatbuffer):
        raise ValueError(f"The model is truncated or damaged: {len(flatbuffer)} bytes, and it points to {position}")
    return struct.unpack_from(code, flatbuffer, position)[0]


def _indirect(flatbuffer, position):
    return position + _number(flatbuffer, position, "<I")


def _field(flatbuffer, table, field):
    """Returns the position of a table's field, or 0 if it is absent."""
    vtable = table - _number(flatbuffer, table, "<i")
    entry = 4 + 2 * field
    offset = _number(flatbuffer, vtable + entry, "<H") if entry < _number(flatbuffer, vtable, "<H") else 0
    return table + offset if offset else 0


def _vector(flatbuffer, table, field):
    """Returns the bytes of a text or a vector of bytes; none if it is absent."""
    position = _field(flatbuffer, table, field)
    if not position:
        return memoryview(b"")
    start = _indirect(flatbuffer, position)
    end = start + 4 + _number(flatbuffer, start, "<I")
    if end > len(flatbuffer):
        raise ValueError(f"The model is truncated or damaged: {len(flatbuffer)} bytes, and it points to {end}")
    return flatbuffer[start + 4 : end]


def _tables(flatbuffer, table, field):
    """Yields the positions of a vector's tables."""
    position = _field(flatbuffer, table, field)
    if position:
        start = _indirect(flatbuffer, position)
        for index in range(_number(flatbuffer, start, "<I")):
            yield _indirect(flatbuffer, start + 4 + 4 * index)
