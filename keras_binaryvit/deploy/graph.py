"""A model as freezing sees it: nodes that will become inference layers, and per-channel affines on the edges.

An affine (a batch normalization, a shift, a residual scale) is no node: it waits on the edge that reads the tensor,
as float64 constants, until `fold` has found the cheapest place for it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_binaryvit.layers import QuantConv1D, QuantConv2D, QuantDense, QuantDepthwiseConv2D
from keras_binaryvit.models.image_classifier import ImageClassifier
from keras_binaryvit.typing import Shape

# Joins the names of nested layers. Keras allows no slash, PyTorch no dot, and underscores are in most names.
SEPARATOR = "-"


class ConversionError(ValueError, RuntimeError):
    """The model can't be converted, or the file isn't what the model promised. The message names the layers."""


@dataclasses.dataclass(eq=False)
class Node:
    """One operation of the inference model.

    Attributes:
        kind: Class of the inference layer, or a marker of this module.
        inputs: What it reads.
        shape: Of its output, without the batch.
        name: Of the layer; begins with the path of the training layer that it comes from.
        constants: Values of the layer's weights, float64.
        options: Arguments of the layer's constructor.
        dtype: Of its output.
    """

    kind: type
    inputs: "list[Edge]"
    shape: Shape
    name: str
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    options: dict = dataclasses.field(default_factory=dict)
    dtype: str = "float32"


@dataclasses.dataclass(eq=False)
class Edge:
    """A read of `scale * node + shift`; both scalars or one value for each channel (last axis)."""

    node: Node
    scale: np.ndarray | float = 1.0
    shift: np.ndarray | float = 0.0

    @property
    def shape(self) -> Shape:
        """Shape of the value, without the batch."""
        return self.node.shape

    def affine(self, scale: np.ndarray | float = 1.0, shift: np.ndarray | float = 0.0) -> "Edge":
        """Returns `scale * self + shift`."""
        return Edge(self.node, self.scale * scale, self.shift * scale + shift)

    def has_scale(self) -> bool:
        """Whether the scale isn't 1."""
        return bool(np.any(np.asarray(self.scale) != 1))

    def has_shift(self) -> bool:
        """Whether the shift isn't 0."""
        return bool(np.any(np.asarray(self.shift) != 0))


class Input:
    """Marks an input of the model."""


class Operation:
    """Marks an ordinary Keras operation, called as it is: options `operation` and `call`, arguments with `Slot`s."""


class Pick:
    """Marks one of several outputs of an `Operation`: option `index`."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """Stands for the input `index` of a node among the arguments of an `Operation`."""

    index: int


@dataclasses.dataclass
class Graph:
    """A model.

    Attributes:
        nodes: In an order in which they can be computed.
        outputs: What the model returns, flat.
        input_structure: The model's own structure of inputs; what it holds is of no meaning.
        output_structure: The same of `outputs`.
    """

    nodes: list[Node]
    outputs: list[Edge]
    input_structure: object
    output_structure: object


def functional_graph(model: keras.Model) -> keras.Model | None:
    """Returns the layers of a functional or Sequential model as a functional model, `None` for any other."""
    try:
        if isinstance(model, keras.Sequential):
            return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        graph = keras.Model(model.input, model.output, name=model.name)
    except (AttributeError, ValueError):
        return None
    # An `ImageClassifier` only normalizes integer images before.
    return graph if type(model).call in (type(graph).call, ImageClassifier.call) else None


def nested_graph(operation: keras.Operation, dtypes: list[str]) -> keras.Model | None:
    """Returns the graph of a functional model that is called on inputs of some types, `None` for anything else."""
    pixels = isinstance(operation, ImageClassifier) and "float" not in dtypes[0]
    return functional_graph(operation) if isinstance(operation, keras.Model) and not pixels else None


def subclassed_graph(model: keras.Model) -> keras.Model:
    """Returns the layers that a model with a `call` of its own calls, as a functional model.

    Raises:
        ConversionError: Its `call` can't be followed.
    """
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    if getattr(model, "inputs", None):
        inputs = model.input
    elif len(shapes) == 1:
        (shape,) = shapes.values()
        inputs = keras.tree.map_shape_structure(lambda shape: keras.Input(shape[1:]), shape)
    else:
        raise ConversionError(
            f"The model {model.name!r} can't be frozen: the shapes of its inputs aren't known. Build it with one "
            "argument, as model.build((None, 32, 32, 3)) does, or call it on a batch."
        )
    return opened(model, lambda: model.call(inputs, **outside_training(model)), inputs)


def outside_training(operation: keras.Operation) -> dict[str, bool]:
    """Returns the arguments by which `operation` computes as it does outside training.

    Without them the layers that augment images do so.
    """
    return {"training": False} if getattr(operation, "_call_has_training_arg", False) else {}


def opened(layer: keras.Operation, call: Callable[[], Any], inputs: Any) -> keras.Model:
    """Returns the layers and operations of `keras.ops` between `inputs` and what `call`, of `layer`, makes of them.

    Raises:
        ConversionError: Something in it takes no symbolic tensors.
    """
    inner = list(layer._flatten_layers()) if isinstance(layer, keras.Layer) else []
    nodes = [(part, list(part._inbound_nodes), list(part._outbound_nodes)) for part in inner]
    weights = len(layer.variables) if inner else 0
    try:
        with keras.StatelessScope(), _symbolic():  # a call may count its calls
            outputs = call()
        if inner and len(layer.variables) > weights:
            raise ValueError("Layers inside it have never been built: build them in build(), or call it on a batch.")
        return keras.Model(inputs, outputs, name=layer.name)
    except Exception as error:  # whatever the user's code raises
        raise ConversionError(
            f"The layer {layer.name!r} can't be frozen: its call ({type(layer).__name__}.call) must be made of layers "
            f"and keras.ops, and no values may decide what it does. {type(error).__name__}: {str(error)[:300]}"
        ) from error
    finally:
        for part, inbound, outbound in nodes:
            part._inbound_nodes[:], part._outbound_nodes[:] = inbound, outbound


class Inherited(keras.Operation):
    """The `call` of a layer with quantizers, which that of a subclass calls."""

    def __init__(self, layer: keras.Layer, kind: type):
        super().__init__(name=layer.name)
        self.layer = layer
        self.kind = kind

    def compute_output_spec(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(self.layer.compute_output_shape(x.shape), "float32")


def _inherited(kind, call):
    return lambda self, x: Inherited(self, kind)(x) if isinstance(x, keras.KerasTensor) else call(self, x)


_ARITHMETIC: dict[str, Callable] = {
    "__add__": keras.ops.add,
    "__sub__": keras.ops.subtract,
    "__mul__": keras.ops.multiply,
    "__truediv__": keras.ops.true_divide,
    "__matmul__": keras.ops.matmul,
}


@contextlib.contextmanager
def _symbolic() -> Iterator[None]:
    """Lets symbolic tensors go where Keras doesn't take them: behind a variable, as in `self.scale * x`, and into
    `super().call(x)` of a layer with quantizers.
    """
    replaced: list[tuple[type, str, Callable]] = [
        (keras.Variable, name, lambda self, other, function=function: function(self, other))
        for name, function in _ARITHMETIC.items()
    ]
    kinds = (QuantConv1D, QuantConv2D, QuantDense, QuantDepthwiseConv2D)
    replaced += [(kind, "call", _inherited(kind, kind.call)) for kind in kinds]
    own = [vars(kind).get(name) for kind, name, _ in replaced]
    for kind, name, function in replaced:
        setattr(kind, name, function)
    try:
        yield
    finally:
        for (kind, name, _), method in zip(replaced, own, strict=True):
            if method is None:
                delattr(kind, name)
            else:
                setattr(kind, name, method)
