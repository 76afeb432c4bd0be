"""writing: layers that write themselves as custom operators while a model is converted.

TensorFlow's converters make one custom operator of a `tf.function` that says what it implements. What stands inside is
dropped, but for its shape.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar

import keras
import numpy as np

from keras_binaryvit.typing import Shape, Tensor


@dataclasses.dataclass
class _Writing:
    lce: bool
    layers: list[keras.layers.Layer] = dataclasses.field(default_factory=list)
    packed: dict[int, tuple[Tensor, Tensor]] = dataclasses.field(default_factory=dict)


_CURRENT: ContextVar[_Writing | None] = ContextVar("writing", default=None)


@contextlib.contextmanager
def writing(lce: bool) -> Iterator[list[keras.layers.Layer]]:
    """Makes the layers that are called inside write themselves as operators, with `lce` also those of LCE, for a
    converter that doesn't find signs and binary convolutions itself. Yields the list of those that did: an operator's
    option `layer` is the position in it."""
    current = _Writing(lce)
    token = _CURRENT.set(current)
    try:
        yield current.layers
    finally:
        _CURRENT.reset(token)


def writes(lce: bool = False) -> bool:
    """Whether a layer shall write itself: one of LCE's with `lce=True`, one of the runtime's without."""
    current = _CURRENT.get()
    return current is not None and (current.lce or not lce)


def _current():
    current = _CURRENT.get()
    if current is None:
        raise RuntimeError("Layers write themselves as operators only inside `with writing(...)`.")
    return current


def signs(layer: keras.layers.Layer, x: Tensor) -> Tensor:
    """Returns the signs of `x`, which `layer` writes as LCE's operators; `bits_of` knows their bits."""
    bits = operator(layer, "LceQuantize", (*x.shape[:-1], -(-x.shape[-1] // 32)), "int32", x)
    result = operator(layer, "LceDequantize", x.shape, "float32", bits)  # dropped where nothing reads it
    _current().packed[id(result)] = result, bits
    return result


def bits_of(signs: Tensor) -> Tensor:
    """Returns the packed bits of what `signs` gave."""
    return _current().packed[id(signs)][1]


def operator(
    layer: keras.layers.Layer, name: str, shape: Shape, dtype: str, *tensors: Tensor, **attributes: int
) -> Tensor:
    """Returns the output, of this shape and type, of the operator `name` on `tensors`, which `layer` writes.

    NumPy arrays become constants, `attributes` the operator's options. Outside of `writing` it is a RuntimeError.
    """
    import tensorflow as tf

    layers = _current().layers
    if layer not in layers:
        layers.append(layer)
    options = {**attributes, "layer": layers.index(layer)}
    written = "".join(f' attr {{ key: "{key}" value {{ i: {value} }} }}' for key, value in options.items())
    implements = f'name: "{name}" attr {{ key: "tfl_fusable_op" value {{ b: true }} }}{written}'

    @tf.function(experimental_implements=implements, autograph=False)
    def body(*inputs):
        return tf.zeros(shape, dtype)

    return body(*map(tf.convert_to_tensor, tensors))


def pack(kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel of +-1, `(..., channels, units)`, in bits: int32 `(units, ... * ceil(channels / 32))`.

    The first of 32 channels is in the lowest bit of a word, which is set for a negative value.
    """
    bits = np.ascontiguousarray(np.moveaxis(np.asarray(kernel) < 0, -1, 0))
    bits = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -bits.shape[-1] % 32)])
    return np.packbits(bits, axis=-1, bitorder="little").view("<i4").reshape(len(bits), -1)
