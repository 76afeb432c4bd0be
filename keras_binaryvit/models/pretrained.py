"""Trained weights in a small file: a binary kernel is its bits and one magnitude for each unit, all else is float32."""

import hashlib
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_binaryvit import quantizers
from keras_binaryvit.layers import QuantConv2D, QuantDense

FOLDER = Path(__file__).parent / "weights"


def pack(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the weights of `model` by path, for `numpy.savez`.

    A kernel with a 1-bit quantiser is two arrays: `<path>/bits`, its signs, eight to a byte, and `<path>/magnitude`.
    The small values that training accumulates in it are gone: `unpack` gives a kernel of +-magnitude, which is
    quantised to the same values and can be trained further.

    Raises:
        ValueError: A quantiser gives other values than signs with one magnitude for each unit.
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
        packed: By path.
        without: Layers that are left out, by name: those of the model keep what they have.

    Raises:
        ValueError: Names or shapes don't fit; the message lists them, and nothing was changed.
    """
    binary = _binary_layers(model)
    values, problems, left = {}, [], {key for key in packed if key.split("/")[0] not in without}
    for weight in model.weights:
        if weight.path.split("/")[0] in without:
            continue
        keys = [f"{weight.path}/{part}" for part in ("bits", "magnitude")] if weight.path in binary else [weight.path]
        left.difference_update(keys)
        if not all(key in packed for key in keys):
            problems.append(f"{weight.path} is missing")
            continue
        try:
            values[weight.path] = _restored(weight, *(packed[key] for key in keys))
        except ValueError as error:
            problems.append(f"{weight.path}: {error}")
    problems += [f"{key} is not in the model" for key in sorted(left)]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"The weights don't fit the model {model.name!r}: {shown}.")
    for weight in model.weights:
        if weight.path in values:
            weight.assign(values[weight.path])


def save(model: keras.Model, path: str | os.PathLike) -> str:
    """Writes `pack(model)` to a file and returns its SHA-256, the same for the same weights."""
    # `Any`, because for NumPy's type hints each name could be `allow_pickle`.
    arrays: dict[str, Any] = pack(model)
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def load(model: keras.Model, path: str | os.PathLike, digest: str, without: tuple[str, ...] = ()) -> None:
    """Sets the weights of `model` to those of a file that `save` wrote.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: Its SHA-256 isn't `digest`, or it doesn't fit the model.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no file {os.fspath(path)!r} with the weights. Install keras-binaryvit again."
        )
    actual = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if actual != digest:
        raise ValueError(
            f"The weights {os.fspath(path)!r} are damaged: their SHA-256 is {actual}, and should be {digest}. "
            "Install keras-binaryvit again."
        )
    with np.load(path, allow_pickle=False) as packed:
        unpack(model, dict(packed), without)


def _binary_layers(model):
    """Returns the layers with 1-bit kernels by the path of the kernel."""
    layers = (layer for layer in model._flatten_layers() if isinstance(layer, QuantConv2D | QuantDense))
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
