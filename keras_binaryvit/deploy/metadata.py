"""add_metadata: what a program needs besides the graph: how to prepare an image, and what the outputs mean.

It is JSON in a buffer of its own, which the schema's list of metadata names `binaryvit`:

    {"version": 1, "mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26], "resize": 32, "interpolation": "bilinear",
     "outputs": "logits", "labels": ["airplane", "automobile"]}

An image is resized so that its short side has `resize` pixels, cropped in the centre to the model's input, and
normalised: (image / 255 - mean) / std. What isn't known is left out.
"""

import json
import math
from collections.abc import Sequence

import numpy as np

from keras_binaryvit.data import Preprocessing
from keras_binaryvit.deploy import flatbuffer as flatbuffers
from keras_binaryvit.layers import ImagePreprocessor

NAME = "binaryvit"
VERSION = 1


def add_metadata(
    flatbuffer: bytes,
    preprocessing: Preprocessing | ImagePreprocessor | None = None,
    labels: Sequence[str] | None = None,
) -> bytes:
    """Returns the model with metadata that `binaryvit-run` reads, in place of any that it had.

    Every interpreter reads the model as before. Whether the outputs are logits or probabilities is seen in the graph.

    Args:
        flatbuffer: A model with one input, `(batch, height, width, channels)`, and one output, `(batch, classes)`.
        preprocessing: How to make the input of an image: a model's `preprocessor`, or what `kb.data.preprocessing` says
            of a data set.
        labels: The classes' names, in the order of the outputs.

    Raises:
        ValueError: The bytes are no such model, or the preprocessing or the labels don't fit it.
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
    if preprocessing is not None:
        content |= _checked_preprocessing(preprocessing, model.inputs[0].shape)
    content["outputs"] = "probabilities" if last and last.name == "SOFTMAX" else "logits"
    if labels is not None:
        content["labels"] = _checked_labels(labels, output.shape)
    return _with_metadata(flatbuffer, json.dumps(content, ensure_ascii=False).encode())


def _checked_preprocessing(preprocessing, input_shape):
    _, height, width, channels = input_shape
    mean, std = ([float(value) for value in values] for values in (preprocessing.mean, preprocessing.std))
    if not len(mean) == len(std) == channels:
        raise ValueError(f"The model takes {channels} channels. Received: mean={mean}, std={std}")
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"mean and std must be finite, and std positive. Received: mean={mean}, std={std}")
    if isinstance(preprocessing, ImagePreprocessor):
        resize = min(preprocessing.resize_size)
    else:
        resize = min(height, width) if preprocessing.resize is None else int(preprocessing.resize)
    if resize < min(height, width):
        raise ValueError(f"resize must be at least the crop's {min(height, width)} pixels. Received: {resize}")
    if preprocessing.interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"interpolation must be bilinear or bicubic. Received: {preprocessing.interpolation!r}")
    return {"mean": mean, "std": std, "resize": resize, "interpolation": preprocessing.interpolation}


def _checked_labels(labels, output_shape):
    labels = list(labels)
    if len(labels) != output_shape[-1]:
        raise ValueError(f"The model has {output_shape[-1]} classes. Received: {len(labels)} labels")
    for index, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"A label must be a text that isn't empty. Received: {label!r} for class {index}")
    return labels


def _with_metadata(flatbuffer, text):
    model, schema = flatbuffers.unpack(flatbuffer), flatbuffers.schema()
    if any((buffer.offset or 0) > 1 for buffer in model.buffers):
        raise ValueError("This model keeps constants behind the flatbuffer (it is above 2 GB); it can't take metadata.")
    model.metadata = model.metadata or []
    entry = next((entry for entry in model.metadata if entry.name == NAME.encode()), None)
    if entry is None:
        entry = schema.MetadataT(name=NAME.encode(), buffer=len(model.buffers))
        model.metadata.append(entry)
        model.buffers.append(schema.BufferT())
    model.buffers[entry.buffer].data = np.frombuffer(text, np.uint8)
    return flatbuffers.pack(model)
