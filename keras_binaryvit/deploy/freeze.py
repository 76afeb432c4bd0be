"""freeze: the inference model of a training model."""

import keras

from keras_binaryvit.deploy import lower_runtime, runtime_layers
from keras_binaryvit.deploy.compare import check_frozen
from keras_binaryvit.deploy.emit import emit
from keras_binaryvit.deploy.fold import fold
from keras_binaryvit.deploy.graph import ConversionError
from keras_binaryvit.deploy.lce_layers import Convolution
from keras_binaryvit.deploy.lower import RULES, lower
from keras_binaryvit.layers.quantized import QuantizedKernel

_RULES = {"lce": RULES, "fused": lower_runtime.RULES}


def binary_layers(frozen: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of a frozen model that multiply 1-bit values with 1-bit kernels."""
    return [layer for layer in frozen._flatten_layers() if isinstance(layer, Convolution) and layer.binary]


def freeze(model: keras.Model, ops: str = "lce", check: bool = True) -> keras.Model:
    """Returns the inference model of `model`: an ordinary Keras model in float32, for calling, saving and converting.

    Every 1-bit kernel becomes +-1 with a factor for each unit. Batch normalizations, shifts and residual scales are
    computed together in float64 and become part of the constants around them; binary dense layers become 1x1
    convolutions, which the LCE converter knows; the pooling branches of a block become one depthwise convolution.
    Binary products are the same integers as in `model(x, training=False)`; between them values differ by float32's
    rounding. `model` is unchanged.

    Args:
        model: A built model of our layers and any others. Models and layers of your own are opened: what their `call`
            does with layers and `keras.ops` becomes part of the frozen model. Others are made again from their
            `get_config()`.
        ops: `"lce"`: layers of operations that the Larq Compute Engine has. `"fused"`: a layer each for attention,
            feed-forward layers, pooling branches and binary patch merging, as docs/operators.md defines them; what has
            no such operator is as with `"lce"`.
        check: Whether to compare the frozen layers with those of `model` on random inputs; `compare.py` says how.

    Raises:
        TypeError: `model` is no Keras 3 model.
        ValueError: `ops` is unknown or other than what the model was frozen for, or the model isn't built.
        ConversionError: A layer can't be frozen, or computes something else when it is; the message names it.
    """
    if ops not in _RULES:
        raise ValueError(f"ops must be 'lce' or 'fused'. Received: ops={ops!r}")
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise TypeError(
            f"This is no Keras 3 model but a {kind}. (Models of Keras 2 and Larq's own layers go to "
            "larq_compute_engine.convert_keras_model.)"
        )
    if not model.built:
        raise ValueError(f"The model {model.name!r} has no weights yet; build it or call it on a batch first.")
    if ops != "fused" and runtime_layers.fused_layers(model):
        raise ValueError(f"The model {model.name!r} has been frozen with ops='fused' and can't be turned back.")
    layers = {layer.path: layer for layer in model._flatten_layers()}
    if integer := [path for path, layer in layers.items() if getattr(layer, "quantization_mode", None)]:
        raise ConversionError(
            f"These layers have been changed by Keras' model.quantize: {', '.join(integer)}. What they compute depends "
            "on the range of each batch, which no operator of LCE or TFLite does. Convert the model from before "
            "quantize()."
        )
    if stateful := [path for path, layer in layers.items() if getattr(layer, "stateful", False)]:
        raise ConversionError(
            f"These layers keep their state from batch to batch, which a file can't: {', '.join(stateful)}. Convert a "
            "model of the same weights with stateful=False. Where the state is needed, make it an input "
            "(initial_state) and an output (return_state=True)."
        )
    for layer in layers.values():
        if isinstance(layer, QuantizedKernel) and not layer.built:
            raise ConversionError(
                f"The layer {layer.name!r} of the model {model.name!r} can't be frozen: it has never been built. The "
                "layer that holds it must build it in its build(), or leave it out."
            )
    frozen = emit(fold(lower(model, _RULES[ops])), model.name)
    for tensor in frozen.outputs:
        if not tensor.shape:
            name = tensor._keras_history.operation.name
            raise ConversionError(f"{name!r} gives one number for a whole batch. An output needs one for each image.")
    if check:
        check_frozen(model, frozen, _RULES[ops])
    return frozen
