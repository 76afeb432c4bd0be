"""freeze: the inference model of a training model."""

import keras
import numpy as np
from keras import ops

from keras_binaryvit import quantizers
from keras_binaryvit.layers import QuantConv2D, QuantDense


def quantized_layers(model: keras.Model) -> list[QuantDense | QuantConv2D]:
    """Returns all layers of `model` that can own a binarised kernel, at any depth."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, QuantDense | QuantConv2D)]


def freeze(model: keras.Model) -> keras.Model:
    """Returns the inference model of `model`: an ordinary Keras model in float32, for calling, saving and converting.

    Every 1-bit kernel becomes +-1 with a factor for each unit, and binary dense layers become 1x1 convolutions, which
    the LCE converter knows. Its outputs equal those of `model(x, training=False)`: binary products are integers in
    both. `model` is unchanged.

    Args:
        model: A functional or Sequential model of any layers, built.

    Raises:
        ValueError: `model` has no graph of layers or isn't built, or a kernel's quantised values aren't +-one
            magnitude for each unit; the message names the layer.
    """
    if not model.built:
        raise ValueError(f"The model {model.name!r} has no weights yet; build it or call it on a batch first.")
    try:
        graph = keras.Model(model.inputs, model.outputs, name=model.name)
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"Only functional and Sequential models can be frozen; {model.name!r} is a {type(model).__name__} "
            "without a graph of layers."
        ) from error
    frozen = keras.models.clone_model(graph, clone_function=_frozen_layer, recursive=True)

    for layer in quantized_layers(frozen):
        if quantizers.is_one_bit(layer.kernel_quantizer) and not layer.is_frozen:
            raise ValueError(
                f"The layer {layer.path!r} can't be frozen: the layer that holds it must take its kernel quantiser as "
                "an argument `kernel_quantizer` and return it from get_config()."
            )

    sources = {id(layer.kernel): layer for layer in quantized_layers(graph)}
    targets = {id(layer.kernel): layer for layer in quantized_layers(frozen) if layer.is_frozen}
    for source, target in zip(_variables_but_scales(graph), _variables_but_scales(frozen), strict=True):
        if id(target) in targets:
            layer = targets[id(target)]
            values, scale = _signs_and_scale(sources[id(source)])
            layer.kernel.assign(values.reshape(layer.kernel.shape))
            layer.scale.assign(scale)
        else:
            target.assign(source)
    frozen.trainable = False
    return frozen


def _variables_but_scales(model):
    scales = {id(layer.scale) for layer in quantized_layers(model) if layer.is_frozen}
    return [variable for variable in model.variables if id(variable) not in scales]


def _frozen_layer(layer):
    config = layer.get_config()
    if quantizers.is_one_bit(quantizers.get(config.get("kernel_quantizer"))):
        config["kernel_quantizer"] = quantizers.serialize(quantizers.FrozenSign())
    if "dtype" in config:
        config["dtype"] = "float32"
    return type(layer).from_config(config)


def _signs_and_scale(layer):
    values, scale = (None if x is None else ops.convert_to_numpy(x) for x in layer.quantized_kernel())
    magnitudes = np.abs(values).reshape(-1, values.shape[-1])
    if not np.all(magnitudes == magnitudes[0]) or not np.all(magnitudes[0] > 0):
        raise ValueError(
            f"The layer {layer.path!r} can't be frozen: its kernel quantiser {layer.kernel_quantizer!r} gives other "
            "values than +-one magnitude for each unit."
        )
    return np.where(values >= 0, 1.0, -1.0), magnitudes[0] * (1.0 if scale is None else scale)
