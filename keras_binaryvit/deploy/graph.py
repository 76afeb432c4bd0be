"""A model as freezing sees it: nodes that will become inference layers, and per-channel affines on the edges.

An affine (a batch normalisation, a shift, a residual scale) is no node: it waits on the edge that reads the tensor,
as float64 constants, until `fold` has found the cheapest place for it.
"""

import dataclasses

import numpy as np

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
    """

    kind: type
    inputs: "list[Edge]"
    shape: Shape
    name: str
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    options: dict = dataclasses.field(default_factory=dict)


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
    """Marks an ordinary Keras operation, called as it is: options `operation`, `args`, `kwargs` with `Slot`s."""


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
        input_structure: The model's own structure of inputs, holding their numbers.
        output_structure: The same of `outputs`.
    """

    nodes: list[Node]
    outputs: list[Edge]
    input_structure: object
    output_structure: object
