"""read_metadata: what a `.tflite` file says of its images and classes.

The converter of keras_binaryvit writes it, as JSON in a buffer that the schema's list of metadata names `binaryvit`.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import struct

from binaryvit_runtime.files import map_model
from binaryvit_runtime.preprocessing import Preprocessor

_NAME = b"binaryvit"
_VERSION = 2  # version 1 has `resize`, pixels of the short side, in place of `resize_size`


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a file says; `None` stands for what it doesn't.

    Attributes:
        preprocessor: How to make the model's input of an image.
        outputs: `"logits"` or `"probabilities"`.
        class_names: The classes' names, in the order of the outputs.
    """

    preprocessor: Preprocessor | None = None
    outputs: str | None = None
    class_names: tuple[str, ...] | None = None


def read_metadata(model: str | os.PathLike | bytes) -> Metadata:
    """Returns what a model says of its images and classes.

    Args:
        model: Path of a `.tflite` file, or its bytes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no TFLite flatbuffer, or damaged, or its metadata is of a newer version or makes no
            sense; the message says what.
    """
    flatbuffer = map_model(model)
    try:
        text = _find(flatbuffer)
    except (
        struct.error,
        IndexError,
        OverflowError,
        TypeError,
        ValueError,
    ) as error:  # the schema's code checks nothing
        raise ValueError(f"The model is truncated or damaged: {len(flatbuffer)} bytes. {str(error)[:200]}") from error
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
            f"The model's metadata is of version {content['version']}; this package reads versions up to {_VERSION}. "
            "Install a newer binaryvit-runtime."
        )
    preprocessor = None
    if "mean" in content or "std" in content:
        if "resize" in content:
            content["resize_size"] = content["resize"]
        names = ("mean", "std", "resize_size", "interpolation")
        try:
            preprocessor = Preprocessor(**{name: content[name] for name in names if name in content})
        except (TypeError, ValueError) as error:
            raise ValueError(f"The model's metadata is damaged: {error}") from error
    outputs, class_names = content.get("outputs"), content.get("labels")
    if outputs not in (None, "logits", "probabilities"):
        raise ValueError(f"The model's metadata is damaged: outputs={str(outputs)[:50]!r}")
    if class_names is not None:
        if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
            raise ValueError("The model's metadata is damaged: labels must be a list of texts")
        class_names = tuple(class_names)
    return Metadata(preprocessor, outputs, class_names)


def _find(flatbuffer: bytes | mmap.mmap) -> bytes | None:
    """Returns the content of the buffer that the list of metadata names, or `None`."""
    from ai_edge_litert.schema_py_generated import Model

    model = Model.GetRootAs(flatbuffer, 0)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == _NAME:
            number = entry.Buffer()
            if number >= model.BuffersLength():
                raise ValueError(f"Its metadata is in buffer {number}, which it doesn't have.")
            buffer = model.Buffers(number)
            return bytes(buffer.DataAsNumpy()) if buffer.DataLength() else b""
    return None
