"""add_metadata: what a program needs besides the graph: how to prepare an image, and what the outputs mean.

It is JSON in a buffer of its own, which the schema's list of metadata names `binaryvit`:

    {"version": 2, "mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26], "resize_size": [32, 32],
     "interpolation": "bilinear", "outputs": "logits", "labels": ["airplane", "automobile"]}

The largest centered part of an image with the aspect ratio of `resize_size` is resized to it with antialiasing, the
model's input is cropped in its center, and normalized: (image / 255 - mean) / std. What isn't known is left out.
"""

import json
from collections.abc import Sequence

import numpy as np

from keras_binaryvit.deploy import flatbuffer as flatbuffers
from keras_binaryvit.layers import ImagePreprocessor

NAME = "binaryvit"
VERSION = 2


def add_metadata(
    flatbuffer: bytes, preprocessor: ImagePreprocessor | None = None, class_names: Sequence[str] | None = None
) -> bytes:
    """Returns the model with metadata that `binaryvit-run` reads, in place of any that it had.

    `convert` calls it with what the model knows; this is for other converters' files. Every interpreter reads the model
    as before. Whether the outputs are logits or probabilities is seen in the graph.

    Args:
        flatbuffer: A model with one input, `(batch, height, width, channels)`, and one output, `(batch, classes)`.
        preprocessor: How to make the input of an image: a model's `preprocessor`, or that of a data set, as
            `kb.data.preprocessor` returns it.
        class_names: The classes' names, in the order of the outputs.

    Raises:
        ValueError: The bytes are no such model, or the preprocessor or the names don't fit it.
    """
    model = flatbuffers.read(flatbuffer)
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.inputs[0].shape) != 4:
        raise ValueError(
            "Metadata is for models with one input (batch, height, width, channels) and one output. This one takes "
            f"{[tensor.shape for tensor in model.inputs]} and gives {[tensor.shape for tensor in model.outputs]}."
        )
    output = model.outputs[0]
    last = next((operator for operator in model.operators if output in operator.outputs), None)
    content: dict = {"version": VERSION}
    if preprocessor is not None:
        given, taken = (*preprocessor.image_size, len(preprocessor.mean)), tuple(model.inputs[0].shape[1:])
        if given != taken:
            raise ValueError(f"The model takes images of shape {taken}. Received: a preprocessor that gives {given}")
        content |= preprocessor.to_metadata()
    content["outputs"] = "probabilities" if last and last.name == "SOFTMAX" else "logits"
    if class_names is not None:
        content["labels"] = labels = list(class_names)
        if len(labels) != output.shape[-1]:
            raise ValueError(f"The model has {output.shape[-1]} classes. Received: {len(labels)} class names")
        for index, name in enumerate(labels):
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"A class name must be a text that isn't empty. Received: {name!r} for class {index}")
    changed, schema = flatbuffers.unpack(flatbuffer), flatbuffers.schema()
    if any((buffer.offset or 0) > 1 for buffer in changed.buffers):
        raise ValueError("This model keeps constants behind the flatbuffer (it is above 2 GB); it can't take metadata.")
    changed.metadata = changed.metadata or []
    entry = next((entry for entry in changed.metadata if entry.name == NAME.encode()), None)
    if entry is None:
        entry = schema.MetadataT(name=NAME.encode(), buffer=len(changed.buffers))
        changed.metadata.append(entry)
        changed.buffers.append(schema.BufferT())
    changed.buffers[entry.buffer].data = np.frombuffer(json.dumps(content, ensure_ascii=False).encode(), np.uint8)
    return flatbuffers.pack(changed)


def read_metadata(flatbuffer: bytes) -> dict:
    """Returns what `add_metadata` wrote, empty where there is none.

    Raises:
        ValueError: The bytes are no TFLite flatbuffer, or its metadata is damaged.
    """
    flatbuffers.read(flatbuffer)
    model = flatbuffers.unpack(flatbuffer)
    buffers = [model.buffers[entry.buffer].data for entry in model.metadata or [] if entry.name == NAME.encode()]
    return json.loads(bytes(buffers[0])) if buffers else {}
