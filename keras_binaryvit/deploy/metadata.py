"""add_metadata: what a program needs besides the graph: how to prepare an image, and what the outputs mean.

It is JSON in a buffer of its own, which the schema's list of metadata names `binaryvit`:

    {"version": 1, "mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26], "resize": 32, "interpolation": "bilinear",
     "outputs": "logits", "labels": ["airplane", "automobile"]}

An image is resized so that its short side has `resize` pixels, cropped in the centre to the model's input, and
normalised: (image / 255 - mean) / std. What isn't known is left out.
"""

import json
import math
import struct
from collections.abc import Sequence

from keras_binaryvit.data import Preprocessing
from keras_binaryvit.deploy import tflite

NAME = "binaryvit"
VERSION = 1
_FIELDS = 8  # of the schema's Model; the first is a number, all others refer to something
_BUFFERS, _METADATA = 4, 6
_ALIGNMENT = 16  # that the schema promises for constants


def add_metadata(
    flatbuffer: bytes, preprocessing: Preprocessing | None = None, labels: Sequence[str] | None = None
) -> bytes:
    """Returns the model with metadata that `binaryvit-run` reads, in place of any that it had.

    Every interpreter reads the model as before. Whether the outputs are logits or probabilities is seen in the graph.

    Args:
        flatbuffer: A model with one input, `(batch, height, width, channels)`, and one output, `(batch, classes)`.
        preprocessing: How to make the input of an image; `kb.data.preprocessing` says it of a data set.
        labels: The classes' names, in the order of the outputs.

    Raises:
        ValueError: The bytes are no such model, or the preprocessing or the labels don't fit it.
    """
    model = tflite.read(flatbuffer)
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
    """Returns a new root before the old content, which it refers to: no constant is packed anew.

    References of a flatbuffer are distances forward, so all that is behind stays valid.
    """
    model = tflite.root(flatbuffer)
    if model.vtable_size > 4 + 2 * _FIELDS:
        raise ValueError("This model has fields that this version doesn't know; it can't be given metadata.")
    old_buffers = [buffer.position for buffer in model.tables(_BUFFERS)]
    if any(buffer.number(1, "<Q") > 1 for buffer in model.tables(_BUFFERS)):
        raise ValueError("This model keeps constants behind the flatbuffer (it is above 2 GB); it can't take metadata.")
    old_entries = [entry.position for entry in model.tables(_METADATA) if entry.text(0) != NAME]

    new = bytearray(b"\0\0\0\0TFL3")
    later: list[tuple[int, int]] = []  # places of references into the old content, and where they refer there

    def append(content):
        new.extend(b"\0" * (-len(new) % 4))
        position = len(new)
        new.extend(content)
        return position

    def refer(place, target):
        struct.pack_into("<I", new, place, target - place)

    def vector_of_tables(old_tables):
        """Appends a vector with room for one more table at its end; returns its position and this last place."""
        position = append(struct.pack("<I", len(old_tables) + 1) + bytes(4 * (len(old_tables) + 1)))
        later.extend((position + 4 + 4 * index, table) for index, table in enumerate(old_tables))
        return position, position + 4 + 4 * len(old_tables)

    # The root: a vtable, which has 0 for a field that is absent, and behind it the distance to it and the fields.
    kept = [field for field in range(1, _FIELDS) if field not in (_BUFFERS, _METADATA) and model.target(field)]
    place = {field: 4 + 4 * field for field in (0, _BUFFERS, _METADATA, *kept)}
    entries = [place.get(field, 0) for field in range(_FIELDS)]
    vtable = append(struct.pack(f"<{2 + _FIELDS}H", 4 + 2 * _FIELDS, 4 + 4 * _FIELDS, *entries))
    table = append(bytes(4 + 4 * _FIELDS))
    struct.pack_into("<iI", new, table, table - vtable, model.number(0, "<I"))
    refer(0, table)
    later.extend((table + place[field], model.target(field)) for field in kept)

    # Its buffers, and one with the text; a Buffer's only field here is `data`.
    buffers, last_buffer = vector_of_tables(old_buffers)
    refer(table + place[_BUFFERS], buffers)
    vtable = append(struct.pack("<3H", 6, 8, 4))
    buffer = append(struct.pack("<iI", len(new) + (-len(new) % 4) - vtable, 0))
    refer(last_buffer, buffer)
    new.extend(b"\0" * ((-len(new) - 4) % _ALIGNMENT))
    refer(buffer + 4, append(struct.pack("<I", len(text)) + text))

    # Its metadata, and one entry more; a Metadata has a name and the number of a buffer.
    metadata, last_entry = vector_of_tables(old_entries)
    refer(table + place[_METADATA], metadata)
    vtable = append(struct.pack("<4H", 8, 12, 4, 8))
    entry = append(struct.pack("<iII", len(new) + (-len(new) % 4) - vtable, 0, len(old_buffers)))
    refer(last_entry, entry)
    name = NAME.encode()
    refer(entry + 4, append(struct.pack("<I", len(name)) + name + b"\0"))

    new.extend(b"\0" * (-len(new) % _ALIGNMENT))
    for where, target in later:
        refer(where, len(new) + target)
    if len(new) + len(flatbuffer) >= 2**31:
        raise ValueError("With its metadata the model would be above 2 GB, more than a flatbuffer holds.")
    return bytes(new) + bytes(flatbuffer)
