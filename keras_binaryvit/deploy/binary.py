"""binary_table: which layers with quantizers are binary in the file, and what keeps the others from it."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_binaryvit import quantizers
from keras_binaryvit.deploy.lce_layers import Convolution
from keras_binaryvit.layers import QuantConv1D, QuantConv2D, QuantDense
from keras_binaryvit.layers.quantized import QuantizedKernel

_SIGNS = (quantizers.SteSign, quantizers.ApproxSign, quantizers.SwishSign)
_WORD = 32  # bits, in which LCE packs channels


@dataclasses.dataclass(frozen=True)
class BinaryLayer:
    """What becomes of a layer with quantizers.

    Attributes:
        name: Path of the layer.
        binary: Whether it multiplies 1-bit values in the file; else it computes in float32, with a float32 kernel.
        reason: Why it doesn't, "" if it does.
        remedy: What to change, "" if it does.
        claimed: Whether both quantizers of the layer have one bit.
    """

    name: str
    binary: bool
    reason: str
    remedy: str
    claimed: bool

    def __str__(self) -> str:
        return f"{self.name}: binary" if self.binary else f"{self.name}: float32, {self.reason}; {self.remedy}"


def binary_table(model: keras.Model) -> list[BinaryLayer]:
    """Returns a row for each layer of `model` that has quantizers, in the model's order.

    Args:
        model: A trained model, or a frozen one, of which only the binary layers are known.
    """
    rows = []
    for layer in model._flatten_layers():
        if isinstance(layer, QuantizedKernel) and (layer.input_quantizer or layer.kernel_quantizer):
            reason, remedy = obstacle(layer) or ("", "")
            rows.append(BinaryLayer(layer.path, not reason, reason, remedy, layer.is_binary))
        elif isinstance(layer, Convolution) and layer.binary:
            rows.append(BinaryLayer(layer.path, True, "", "", True))
    return rows


def obstacle(layer: QuantizedKernel) -> tuple[str, str] | None:
    """Returns why the product of a built layer with quantizers isn't binary in a file, and what to change; `None` if
    it is.
    """
    if not isinstance(layer, QuantConv1D | QuantConv2D | QuantDense):
        return (
            f"no interpreter has a binary product for a {type(layer).__name__}",
            "use it without an input quantizer, or QuantConv1D, QuantConv2D or QuantDense for binary products",
        )
    if layer.input_quantizer is None:
        return "its inputs aren't quantized", "set input_quantizer='ste_sign' or another sign"
    if layer.kernel_quantizer is None:
        return "its kernel isn't quantized", "set kernel_quantizer='ste_sign' or another sign"
    if not is_sign(layer.input_quantizer):
        return (
            f"its input quantizer {_name(layer.input_quantizer)} doesn't give -1 below 0 and 1 from 0 on",
            "use a sign such as input_quantizer='ste_sign'",
        )
    try:
        signs_and_scale(layer)
    except ValueError:
        return (
            f"its kernel quantizer {_name(layer.kernel_quantizer)} gives other values than +- one magnitude for each "
            "unit",
            "use a sign such as kernel_quantizer='ste_sign', or 'scaled_sign' with a factor for each unit",
        )
    if isinstance(layer, QuantDense):
        return None
    channels = layer.kernel.shape[-2]
    if layer.groups > 1 and channels % _WORD:
        return (
            f"each of its {layer.groups} groups has {channels} channels, and LCE takes multiples of {_WORD}",
            f"use groups of {_WORD} channels or a multiple, or groups=1",
        )
    if layer.padding != "valid" and layer.pad_values not in (-1, 0, 1):
        return f"LCE can't pad with pad_values={layer.pad_values}", "use pad_values=1, or padding='valid'"
    return None


def is_sign(quantizer: Any) -> bool:
    """Whether a quantizer of activations gives 1 where x >= 0, else -1, whoever wrote it."""
    if quantizer is None or isinstance(quantizer, _SIGNS):
        return quantizer is not None
    rng = np.random.default_rng(0)
    size = (2, 3, 5, 64)
    x = rng.normal(size=size) * 10.0 ** rng.integers(-6, 5, size) + rng.normal()
    x[0, 0, 0, :4] = 0.0, -0.0, 1e-30, -1e-30
    x = x.astype("float32")
    try:
        values = keras.ops.convert_to_numpy(quantizer(keras.ops.convert_to_tensor(x)))
    except Exception:  # whatever the user's function asks of its input
        return False
    return np.array_equal(values, np.where(x >= 0, 1.0, -1.0))


def signs_and_scale(layer: QuantizedKernel) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel of `layer` as +-1 and a factor for each unit.

    Raises:
        ValueError: Its quantized values aren't of that form.
    """
    kernel, factor = layer.quantized_kernel()
    values = np.asarray(keras.ops.convert_to_numpy(kernel), np.float64)
    magnitudes = np.abs(values).reshape(-1, values.shape[-1])
    if not np.all(magnitudes == magnitudes[0]):
        raise ValueError(f"The kernel of {layer.path!r} isn't +- one magnitude for each unit.")
    scale = 1.0 if factor is None else np.asarray(keras.ops.convert_to_numpy(factor), np.float64)
    return np.where(values >= 0, 1.0, -1.0), magnitudes[0] * scale


def _name(quantizer):
    return getattr(quantizer, "__name__", None) or repr(quantizer)
