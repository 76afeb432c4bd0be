"""check_frozen: whether a model computes the same when it is frozen, and if not, from which layer on.

Each layer gets what the layer before it gives in the model itself, so that rounding doesn't add up. It may flip a bit
near a threshold, in one sample or another; a wrong constant is wrong in all. So an output differs by the least of its
differences in a few random samples. Bits flip in proportion to the rounding, and a sum of them varies with the root of
their number: the bound is in proportion to the root of the precision that the layer computes with.

Folding works across layers, so the outputs of the whole model are compared too. There flipped bits add up, and the
bound on the mean difference is wide; in half precision so many flip that it would say nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_binaryvit.deploy.emit import computed
from keras_binaryvit.deploy.fold import fold
from keras_binaryvit.deploy.graph import ConversionError, Graph, functional_graph, nested_graph, outside_training
from keras_binaryvit.deploy.interpreters import random_array
from keras_binaryvit.deploy.lower import Lowering, graph_of

SAMPLES = 4
_SIDE = 32  # where the model leaves it open
_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
_WHOLE = 0.05  # of the outputs' standard deviation


def check_frozen(model: keras.Model, frozen: keras.Model, rules: Mapping[type, Callable]) -> None:
    """Compares a model with what `rules` made of it, on random inputs, layer by layer and as a whole. A layer, or an
    output, that differs by more than rounding is a ConversionError."""
    graph = graph_of(model)
    inputs = [_random(tensor, seed) for seed, tensor in enumerate(graph.inputs)]
    seen = {id(tensor): tensor for tensor in inputs}

    def compare(operation, *args, **kwargs):
        arguments = keras.tree.flatten((args, kwargs))
        tensors = [tensor for tensor in arguments if id(tensor) in seen]
        if inner := nested_graph(operation, [keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors]):
            return inner._run_through_graph(tensors, call_fn=compare)
        expected = _called(operation, *args, **kwargs)
        seen.update({id(tensor): tensor for tensor in keras.tree.flatten(expected)})
        lowering = Lowering(rules)
        edges = {id(tensor): lowering.input(f"x{index}", tensor) for index, tensor in enumerate(tensors)}
        args, kwargs = keras.tree.map_structure(lambda x: edges.get(id(x), x), (args, kwargs))
        outputs = [edge.affine() for edge in keras.tree.flatten(lowering.call(operation, *args, **kwargs))]
        actual = computed(fold(Graph(lowering.nodes, outputs, None, None)), list(tensors))
        _assert_close(operation, actual, keras.tree.flatten(expected))
        return expected

    outputs = keras.tree.flatten(graph._run_through_graph(inputs, call_fn=compare))
    if functional_graph(model) is None:
        expected = _called(model, keras.tree.pack_sequence_as(graph.input, inputs))
        _assert_close(model, outputs, keras.tree.flatten(expected))
    if any(getattr(layer, "compute_dtype", None) in _EPSILON for layer in model._flatten_layers()):
        return
    actual = frozen(keras.tree.pack_sequence_as(frozen.input, inputs), training=False)
    if difference := whole_difference(keras.tree.flatten(actual), outputs):
        raise ConversionError(
            f"{difference} when the model {model.name!r} is frozen, though each of its layers computes the same. "
            "This is a fault of freezing: please report the model. freeze(model, check=False) leaves it to verify."
        )


def whole_difference(actual: list[Any], expected: list[Any]) -> str | None:
    """Says which of a model's outputs differs in all samples, if one does, relative to how much it varies among them.

    That is what depends on the input: where a layer is off by a position, the mean over a map hardly changes.
    """
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        a, b = (np.asarray(keras.ops.convert_to_numpy(x), np.float64) for x in (a, b))
        center = np.where(np.isfinite(b), b, 0).mean(axis=0) if len(b) > 1 else 0
        size = max(_size(b - center), 1e-3 * _size(b))
        means = [float(np.mean(sample)) / size for sample in _difference(a, b) if sample.size]
        if means and min(means) > _WHOLE:
            scale = "standard deviation" if len(b) > 1 else "size"
            return (
                f"The output {index} differs by {min(means):.0%} of its {scale} or more in each of {len(means)} random "
                "samples"
            )
    return None


def _called(operation, *args, **kwargs):
    """Returns `operation(*args, **kwargs)` as it is outside training, and leaves its variables as they are.

    Only the states of random numbers go on, so that a layer which draws some differs from what it drew when frozen.
    """
    variables = operation.non_trainable_variables if isinstance(operation, keras.Layer) else []
    variables = [variable for variable in variables if "seed_generator" not in variable.path]
    values = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    outputs = operation(*args, **kwargs | outside_training(operation))
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return outputs


def _random(tensor, seed):
    batch, *sides = tensor.shape
    shape = (batch or SAMPLES, *(side or _SIDE for side in sides))
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return keras.ops.convert_to_tensor(random_array(np.random.default_rng(seed), shape, dtype), dtype)


def _assert_close(operation: keras.Operation, actual: list[Any], expected: list[Any]) -> None:
    dtypes = {getattr(operation, "compute_dtype", None), *(keras.backend.standardize_dtype(x.dtype) for x in expected)}
    bound = max(_EPSILON.get(dtype, 2.0**-23) for dtype in dtypes) ** 0.5
    for a, b in zip(actual, expected, strict=True):
        if tuple(a.shape) != tuple(b.shape):
            raise ConversionError(
                f"The layer {operation.name!r} gives {tuple(b.shape)} in the model and {tuple(a.shape)} when it is "
                f"frozen. {_REMEDY}"
            )
        a, b = (np.asarray(keras.ops.convert_to_numpy(x), np.float64) for x in (a, b))
        difference = _difference(a, b) / _size(b)
        differs = float(np.max(np.atleast_1d(difference).min(axis=0), initial=0.0))
        if differs > bound:
            raise ConversionError(
                f"The layer {operation.name!r} ({type(operation).__name__}) computes something else when it is frozen: "
                f"its outputs differ by {differs:.1e} of their size in all of {SAMPLES} random samples, and rounding "
                f"explains {bound:.1e}. {_REMEDY}"
            )


def _difference(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Returns how much values differ where the expected ones are finite: infinitely where the actual ones aren't."""
    finite = np.isfinite(expected)
    difference = np.abs(np.where(finite, actual, 0) - np.where(finite, expected, 0))
    return np.where(np.isnan(difference), np.inf, difference)


def _size(values: np.ndarray) -> float:
    """Returns the root of the mean square of the finite values."""
    finite = values[np.isfinite(values)]
    return max(float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0, 1e-30)


_REMEDY = (
    "A layer that draws random numbers or counts its calls can't be compared: freeze(model, check=False) leaves it to "
    "verify. Otherwise what its call does isn't what freezing sees."
)
