"""freeze: the inference model of a training model."""

import collections
import textwrap

import keras
import numpy as np

from keras_binaryvit import quantizers
from keras_binaryvit.deploy import lce_layers, lower_runtime, runtime_layers
from keras_binaryvit.deploy.fold import fold
from keras_binaryvit.deploy.graph import Graph, Input, Operation, Pick, Slot
from keras_binaryvit.deploy.lower import RULES, lower, signs_and_scale
from keras_binaryvit.layers import QuantConv2D, QuantDense

_RULES = {"lce": RULES, "fused": lower_runtime.RULES}


def binary_layers(frozen: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of a frozen model that multiply 1-bit values with 1-bit kernels, at any depth."""
    layers = (lce_layers.Convolution, QuantConv2D, QuantDense)
    return [layer for layer in frozen._flatten_layers() if isinstance(layer, layers) and layer.is_binary]


def freeze(model: keras.Model, ops: str = "lce") -> keras.Model:
    """Returns the inference model of `model`: an ordinary Keras model in float32, for calling, saving and converting.

    Every 1-bit kernel becomes +-1 with a factor for each unit. Batch normalisations, shifts and residual scales are
    computed together in float64 and become part of the constants around them; binary dense layers become 1x1
    convolutions, which the LCE converter knows; the pooling branches of a block become one depthwise convolution.
    Binary products are the same integers as in `model(x, training=False)`; between them values differ by float32's
    rounding. `model` is unchanged.

    Args:
        model: A functional or Sequential model, built, of our layers and any others. A layer of your own that contains
            our binary layers must take their kernel quantiser as an argument `kernel_quantizer` and return it from
            `get_config()`.
        ops: `"lce"`: layers of operations that the Larq Compute Engine has. `"fused"`: a layer each for attention,
            feed-forward layers, pooling branches and binary patch merging, as docs/operators.md defines them; what has
            no such operator is as with `"lce"`.

    Raises:
        TypeError: `model` is no Keras 3 model.
        ValueError: `ops` is unknown or other than what the model was frozen for; or it has no graph of layers or isn't
            built, or a layer can't be frozen; the message names it.
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
    for layer in _quantized(model):
        if not layer.built:
            raise ValueError(
                f"The layer {layer.name!r} of the model {model.name!r} can't be frozen: it has never been built. The "
                "layer that holds it must build it in its build(), or leave it out."
            )
    return _emit(fold(lower(model, _RULES[ops])), model.name)


def _emit(graph: Graph, name: str) -> keras.Model:
    """Returns the Keras model of a graph without affines on its edges."""
    tensors: dict = {}
    copies: dict = {}
    names: collections.Counter = collections.Counter()
    for node in graph.nodes:
        read = [tensors[edge.node] for edge in node.inputs]
        names[node.name] += 1
        unique = node.name if names[node.name] == 1 else f"{node.name}_{names[node.name]}"
        if node.kind is Input:
            tensors[node] = keras.Input(**node.options)
        elif node.kind is Pick:
            tensors[node] = keras.tree.flatten(read[0])[node.options["index"]]
        elif node.kind is Operation:
            operation = node.options["operation"]
            if id(operation) not in copies:
                copies[id(operation)] = _copy(operation, unique)
            args, kwargs = keras.tree.map_structure(
                lambda x, read=read: read[x.index] if isinstance(x, Slot) else x, node.options["call"]
            )
            tensors[node] = copies[id(operation)](*args, **kwargs)
            _copy_weights(operation, copies[id(operation)])
        else:
            layer = node.kind(**node.options, name=unique)
            tensors[node] = layer(read[0] if len(read) == 1 else read)
            _set_constants(layer, node.constants)
    flat = [tensors[node] for node in graph.nodes if node.kind is Input]
    inputs = keras.tree.map_structure(lambda index: flat[index], graph.input_structure)
    outputs = keras.tree.map_structure(lambda index: tensors[graph.outputs[index].node], graph.output_structure)
    frozen = keras.Model(inputs, outputs, name=name)
    frozen.trainable = False
    return frozen


def _set_constants(layer, constants):
    if isinstance(layer, lce_layers.Convolution) and not layer.is_binary:
        constants = {"kernel": constants["kernel"] * constants["scale"], "bias": constants["bias"]}
    if isinstance(layer, lce_layers.FloatSign | lce_layers.Attention | runtime_layers.FusedLayer):
        constants = layer.constants(**constants)
    for name, value in constants.items():
        variable = getattr(layer, name)
        value = np.asarray(value, np.float32)
        variable.assign(value.reshape(variable.shape) if value.ndim else np.full(variable.shape, value))


def _copy(operation, name):
    if isinstance(operation, keras.layers.Lambda):
        raise ValueError(
            f"The layer {name!r} can't be frozen: a Lambda holds Python code, which a saved model can't. "
            "Make it a layer of your own, registered with keras.saving.register_keras_serializable."
        )
    try:
        config = operation.get_config()
        if quantizers.is_one_bit(quantizers.get(config.get("kernel_quantizer"))):
            config["kernel_quantizer"] = quantizers.serialize(quantizers.FrozenSign())
        if "dtype" in config:
            config["dtype"] = "float32"
        if "name" in config:  # few operations of keras.ops have none
            config["name"] = name
        return type(operation).from_config(config)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"The layer {name!r} can't be frozen: {type(operation).__name__} can't be made again from its "
            f"get_config(): {textwrap.shorten(str(error), 300)}"
        ) from error


def _copy_weights(source, target):
    if not isinstance(source, keras.layers.Layer) or not source.variables:
        return
    for layer in _quantized(target):
        if quantizers.is_one_bit(layer.kernel_quantizer) and not layer.is_frozen:
            raise ValueError(
                f"The layer {layer.path!r} can't be frozen: the layer that holds it must take its kernel quantiser as "
                "an argument `kernel_quantizer` and return it from get_config()."
            )
    pairs = [
        (trained, frozen)
        for trained, frozen in zip(_quantized(source), _quantized(target), strict=True)
        if frozen.is_frozen and not trained.is_frozen
    ]
    made = {id(variable) for _, frozen in pairs for variable in (frozen.kernel, frozen.scale)}
    replaced = {id(trained.kernel) for trained, _ in pairs}
    variables = [variable for variable in source.variables if id(variable) not in replaced]
    copies = [variable for variable in target.variables if id(variable) not in made]
    for variable, copy in zip(variables, copies, strict=True):
        copy.assign(variable)
    for trained, frozen in pairs:
        values, scale = signs_and_scale(trained)
        frozen.kernel.assign(values.reshape(frozen.kernel.shape))
        frozen.scale.assign(scale)
    for layer in target._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with what it makes of its variables


def _quantized(layer):
    return [inner for inner in layer._flatten_layers() if isinstance(inner, QuantDense | QuantConv2D)]
