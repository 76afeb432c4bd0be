"""emit: the Keras layers of a graph, called on symbolic tensors or on values."""

import collections
import textwrap
from typing import Any

import keras
import numpy as np

from keras_binaryvit.deploy.graph import ConversionError, Graph, Input, Operation, Pick, Slot, outside_training


def emit(graph: Graph, name: str) -> keras.Model:
    """Returns the Keras model of a graph without affines on its edges."""
    inputs = [keras.Input(**node.options) for node in graph.nodes if node.kind is Input]
    outputs = keras.tree.pack_sequence_as(graph.output_structure, computed(graph, inputs))
    frozen = keras.Model(keras.tree.pack_sequence_as(graph.input_structure, inputs), outputs, name=name)
    frozen.trainable = False
    return frozen


def computed(graph: Graph, inputs: list[Any]) -> list[Any]:
    """Returns the outputs of a graph without affines on its edges for `inputs`, both flat."""
    tensors: dict = dict(zip([node for node in graph.nodes if node.kind is Input], inputs, strict=True))
    copies: dict = {}
    names: collections.Counter = collections.Counter()
    for node in graph.nodes:
        read = [tensors[edge.node] for edge in node.inputs]
        names[node.name] += 1
        unique = node.name if names[node.name] == 1 else f"{node.name}_{names[node.name]}"
        if node.kind is Input:
            continue
        if node.kind is Pick:
            tensors[node] = keras.tree.flatten(read[0])[node.options["index"]]
        elif node.kind is Operation:
            operation = node.options["operation"]
            if new := id(operation) not in copies:
                copies[id(operation)] = _copy(operation, unique)
            args, kwargs = keras.tree.map_structure(
                lambda x, read=read: read[x.index] if isinstance(x, Slot) else x, node.options["call"]
            )
            kwargs |= outside_training(operation)
            tensors[node] = copies[id(operation)](*args, **kwargs)
            if new and isinstance(operation, keras.Layer) and operation.variables:
                _copy_weights(operation, copies[id(operation)])  # only now it is built
                if not any(isinstance(x, keras.KerasTensor) for x in read):
                    tensors[node] = copies[id(operation)](*args, **kwargs)
        else:
            layer = node.kind(**node.options, name=unique)
            layer.build(keras.tree.map_structure(lambda x: tuple(x.shape), read[0] if len(read) == 1 else read))
            for name, value in layer.constants(**node.constants).items():
                variable, value = getattr(layer, name), np.asarray(value, np.float32)
                variable.assign(value.reshape(variable.shape) if value.ndim else np.full(variable.shape, value))
            tensors[node] = layer(read[0] if len(read) == 1 else read)
    return [tensors[edge.node] for edge in graph.outputs]


def _copy(operation, name):
    try:
        config = operation.get_config()
        if "dtype" in config and isinstance(operation, keras.Layer):
            config["dtype"] = "float32"
        if "name" in config:  # few operations of keras.ops have none
            config["name"] = name
        return type(operation).from_config(config)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ConversionError(
            f"The layer {name!r} can't be frozen: {type(operation).__name__} can't be made again from its "
            f"get_config(): {textwrap.shorten(str(error), 300)}"
        ) from error


def _copy_weights(source, target):
    # As Keras saves and loads them: that merges low-rank updates (LoRA) into the weights.
    for layer, copy in zip(source._flatten_layers(), target._flatten_layers(), strict=True):
        store: dict[str, Any] = {}
        layer.save_own_variables(store)
        copy.load_own_variables({key: np.array(keras.ops.convert_to_numpy(value)) for key, value in store.items()})
