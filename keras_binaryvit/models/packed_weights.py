"""Trained weights in a small file: a binary kernel is its bits and one magnitude for each unit, all else is float32."""

import io
from typing import Any

import keras
import numpy as np

from keras_binaryvit import quantizers
from keras_binaryvit.layers.quantized import QuantizedKernel


def pack(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the weights of `model` by path, for `numpy.savez`.

    A kernel with a 1-bit quantizer is two arrays: `<path>/bits`, its signs, eight to a byte, and `<path>/magnitude`.
    The small values that training accumulates in it are gone: `unpack` gives a kernel of +-magnitude, which is
    quantized to the same values and can be trained further.

    Raises:
        ValueError: A quantizer gives other values than signs with one magnitude for each unit.
    """
    packed: dict[str, np.ndarray] = {}
    binary = _binary_layers(model)
    for weight in model.weights:
        if weight.path not in binary:
            packed[weight.path] = np.asarray(keras.ops.convert_to_numpy(weight), np.float32)
            continue
        layer = binary[weight.path]
        quantized = _quantized(layer, keras.ops.convert_to_tensor(weight))
        magnitude = np.abs(quantized).max(axis=tuple(range(quantized.ndim - 1)))
        restored = _quantized(layer, np.where(quantized > 0, magnitude, -magnitude))
        if not np.allclose(quantized, restored, rtol=1e-5, atol=0):  # the mean of equal magnitudes may round
            raise ValueError(
                f"The kernel of {layer.path!r} can't be kept as bits: {layer.kernel_quantizer!r} doesn't give it signs "
                "with one magnitude for each unit that it keeps as they are."
            )
        packed[f"{weight.path}/bits"] = np.packbits(quantized.ravel() > 0)
        packed[f"{weight.path}/magnitude"] = magnitude
    return packed


def unpack(model: keras.Model, packed: dict[str, np.ndarray], without: tuple[str, ...] = ()) -> None:
    """Sets the weights of `model` to those that `pack` returned.

    Args:
        model: Built, of the architecture that was packed.
        packed: By path, as bits or as they are.
        without: Layers that are left out, by name: those of the model keep what they have.

    Raises:
        ValueError: Names or shapes don't fit; the message lists them, and nothing was changed.
    """
    binary = _binary_layers(model)
    restored, problems, left = {}, [], {key for key in packed if key.split("/")[0] not in without}
    for weight in model.weights:
        if weight.path.split("/")[0] in without:
            continue
        keys = [weight.path]
        if weight.path in binary and weight.path not in packed:
            keys = [f"{weight.path}/{part}" for part in ("bits", "magnitude")]
        left.difference_update(keys)
        if not all(key in packed for key in keys):
            problems.append(f"{weight.path} is missing")
            continue
        try:
            restored[weight.path] = _restored(weight, *(packed[key] for key in keys))
        except ValueError as error:
            problems.append(f"{weight.path}: {error}")
    problems += [f"{key} is not in the model" for key in sorted(left)]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"The weights don't fit the model {model.name!r}: {shown}.")
    for weight in model.weights:
        if weight.path in restored:
            weight.assign(restored[weight.path])


def values(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns all weights of `model` by path as they are, which `unpack` accepts too."""
    return {weight.path: np.asarray(keras.ops.convert_to_numpy(weight), np.float32) for weight in model.weights}


def to_bytes(packed: dict[str, Any]) -> bytes:
    """Returns the content of an `.npz` file, the same for the same weights."""
    file = io.BytesIO()
    np.savez(file, **packed)
    return file.getvalue()


def from_bytes(content: bytes) -> dict[str, np.ndarray]:
    """Returns what `to_bytes` was given."""
    with np.load(io.BytesIO(content), allow_pickle=False) as packed:
        return dict(packed)


def _binary_layers(model):
    """Returns the layers with 1-bit kernels by the path of the kernel."""
    layers = (layer for layer in model._flatten_layers() if isinstance(layer, QuantizedKernel))
    return {layer.kernel.path: layer for layer in layers if quantizers.is_one_bit(layer.kernel_quantizer)}


def _quantized(layer, kernel):
    return keras.ops.convert_to_numpy(layer.kernel_quantizer(keras.ops.convert_to_tensor(kernel, "float32")))


def _restored(weight, values, magnitude=None):
    shape = tuple(weight.shape)
    if magnitude is None:
        if values.shape != shape:
            raise ValueError(f"shape {values.shape}, and the model has {shape}")
        return values
    count = int(np.prod(shape))
    if values.shape != (-(-count // 8),) or magnitude.shape != shape[-1:]:
        raise ValueError(f"{8 * values.size} bits and {magnitude.size} magnitudes, and the model has {shape}")
    bits = np.unpackbits(values, count=count).reshape(shape)
    return np.where(bits, magnitude, -magnitude)
