"""inspect: what a flatbuffer computes, how many bytes it moves, and which layers its operators come from."""

import collections
import dataclasses
import functools
import importlib
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from keras_binaryvit.deploy import flatbuffer as flatbuffers
from keras_binaryvit.deploy.graph import SEPARATOR
from keras_binaryvit.tables import as_text, new_table


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one operator costs, or several added up.

    Attributes:
        operators: How many.
        bytes_moved: Bytes of the tensors that they read and write: all inputs that aren't constants, each time that an
            operator has them as an input, and all outputs. A bit-packed tensor counts its packed bytes, and every
            operator counts, even one such as RESHAPE that an interpreter may do in place.
        constant_bytes: Bytes of their constant inputs.
        binary_multiply_adds: Products of 1-bit values; those of queries with keys and of probabilities with values only
            in a fused operator, elsewhere they are in floating point.
        float_multiply_adds: Products in convolutions, dense layers and matrix products of any other type; element-wise
            operators count none. Padding counts in both, as is usual.
        kernel_values: Number of 1-bit values in constant kernels.
        kernel_plus_ones: How many of these are +1.
    """

    operators: int = 0
    bytes_moved: int = 0
    constant_bytes: int = 0
    binary_multiply_adds: int = 0
    float_multiply_adds: int = 0
    kernel_values: int = 0
    kernel_plus_ones: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass(frozen=True)
class InspectedOperator:
    """An operator of a flatbuffer.

    Attributes:
        name: Such as `"CONV_2D"` or `"LceBconv2d"`.
        origin: Path of the Keras layer that it comes from, as far as tensor names tell; may be empty.
        input_shapes: Of all inputs that it has, constants too.
        output_shapes: Of all outputs.
        cost: What it costs.
    """

    name: str
    origin: str
    input_shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]
    cost: Cost


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found; `print` shows it as tables.

    Attributes:
        file_bytes: Size of the flatbuffer.
        input_shapes: Of the inputs of the graph.
        output_shapes: Of the outputs of the graph.
        operators: In the order of execution, one entry each.
        constant_bytes: Bytes of all constants by type, each buffer counted once, the largest first. Kernels of
            binary products are of type `"int32, bit-packed"`.
    """

    file_bytes: int
    input_shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]
    operators: tuple[InspectedOperator, ...]
    constant_bytes: dict[str, int]

    @property
    def total(self) -> Cost:
        """What all operators cost together."""
        return sum((operator.cost for operator in self.operators), Cost())

    def by_name(self) -> dict[str, Cost]:
        """Returns what the operators of each name cost, those that move the most bytes first."""
        costs = self._grouped(lambda operator: operator.name)
        return dict(sorted(costs.items(), key=lambda item: -item[1].bytes_moved))

    def by_origin(self, depth: int | None = None) -> dict[str, Cost]:
        """Returns what the operators of each layer cost, in the order in which the layers finish.

        Args:
            depth: Of the layer paths, to add up what is deeper; `None` for whole paths.
        """
        return self._grouped(lambda operator: "/".join(operator.origin.split("/")[:depth]))

    def _grouped(self, key: Callable[[InspectedOperator], str]) -> dict[str, Cost]:
        costs: dict[str, Cost] = {}
        for operator in self.operators:
            costs[key(operator)] = costs.pop(key(operator), Cost()) + operator.cost
        return costs

    def __str__(self) -> str:
        sections = [
            f"{self.file_bytes:,} bytes, {_shapes(self.input_shapes)} -> {_shapes(self.output_shapes)}",
            _cost_table("operator", self.by_name(), self.total),
            _cost_table("layer", self.by_origin(depth=1), self.total),
            _text_table(["constants", "bytes"], [[name, f"{size:,}"] for name, size in self.constant_bytes.items()]),
        ]
        return "\n\n".join(sections)


def inspect(flatbuffer: bytes) -> Inspection:
    """Returns what a `.tflite` flatbuffer computes, of any model; operators of all its subgraphs count once.

    The origin of an operator is the scope of its output's name, or else of its constants' names, without the model's
    name. LCE's converter cuts names to 50 characters, so an origin can end above the layer itself.

    Raises:
        ValueError: These bytes are no TFLite flatbuffer, or it is damaged; the message says where.
        ImportError: It has binary products, and the package `flatbuffers`, a part of TensorFlow, isn't installed.
    """
    model = flatbuffers.read(flatbuffer)
    origins = _origins(model.operators)
    plus_ones = functools.cache(_plus_ones)
    operators = tuple(
        InspectedOperator(
            operator.name,
            origin,
            tuple(tensor.shape for tensor in operator.inputs if tensor),
            tuple(tensor.shape for tensor in operator.outputs),
            _cost(operator, plus_ones),
        )
        for operator, origin in zip(model.operators, origins, strict=True)
    )
    return Inspection(
        file_bytes=len(flatbuffer),
        input_shapes=tuple(tensor.shape for tensor in model.inputs),
        output_shapes=tuple(tensor.shape for tensor in model.outputs),
        operators=operators,
        constant_bytes=_constants(model.operators),
    )


# ---- costs


def _cost(operator: flatbuffers.Operator, plus_ones: Callable) -> Cost:
    inputs = [tensor for tensor in operator.inputs if tensor]
    cost = Cost(
        operators=1,
        bytes_moved=sum(t.nbytes for t in inputs if not t.data) + sum(t.nbytes for t in operator.outputs),
        constant_bytes=sum(len(t.data) for t in inputs),
    )
    if operator.name in _FLOAT_PRODUCTS:
        return cost + Cost(float_multiply_adds=_FLOAT_PRODUCTS[operator.name](operator))
    if operator.name not in _BINARY_PRODUCTS:
        return cost
    products, kernels = _BINARY_PRODUCTS[operator.name](operator)
    cost += Cost(binary_multiply_adds=products)
    for index, taps, channels in kernels:
        *units, words = _shape(operator, index, 2)
        if channels < 1 or words != taps * -(-channels // 32):
            raise flatbuffers.damaged(f"a {operator.name} of {channels} channels has kernels of {words} words")
        kernel = operator.inputs[index]
        if kernel and kernel.data:
            ones = plus_ones(kernel, words // taps, channels)
            cost += Cost(kernel_values=math.prod(units) * taps * channels, kernel_plus_ones=ones)
    return cost


def _shape(operator: flatbuffers.Operator, index: int | None, rank: int) -> tuple[int, ...]:
    """Returns the shape of an input, or of the output for `None`, after a check that it has at least `rank` sides."""
    tensors: Sequence[flatbuffers.Tensor | None] = operator.outputs if index is None else operator.inputs
    tensor = dict(enumerate(tensors)).get(index or 0)
    if tensor is None or len(tensor.shape) < rank:
        what = "is missing" if tensor is None else f"has the shape {tensor.shape}"
        raise flatbuffers.damaged(f"a tensor of {operator.name} {what}; it needs {rank} sides")
    return tensor.shape


def _matrix_product(operator: flatbuffers.Operator) -> int:
    output, left = _shape(operator, None, 2), _shape(operator, 0, 2)
    # The left matrix may be given transposed; either way its other side than the output's rows is what is summed over.
    return math.prod(output) * (left[-1] * left[-2] // max(output[-2], 1))


def _pooling(operator: flatbuffers.Operator) -> int:
    # After scale, shift and bias each row of the table is a weight, of the center or of two positions added up.
    return math.prod(_shape(operator, None, 4)) * (_shape(operator, 1, 2)[0] - 3)


# Multiply-adds of floats.
_FLOAT_PRODUCTS: dict[str, Callable[[flatbuffers.Operator], int]] = {
    "CONV_2D": lambda op: math.prod(_shape(op, None, 4)) * math.prod(_shape(op, 1, 4)[1:]),
    "DEPTHWISE_CONV_2D": lambda op: math.prod(_shape(op, None, 4)) * math.prod(_shape(op, 1, 4)[1:3]),
    "TRANSPOSE_CONV": lambda op: math.prod(_shape(op, 2, 4)) * math.prod(_shape(op, 1, 4)[:3]),
    "FULLY_CONNECTED": lambda op: math.prod(_shape(op, None, 1)) * _shape(op, 1, 2)[-1],
    "BATCH_MATMUL": _matrix_product,
    "BinaryVitPooling": _pooling,
}

# For each kernel the number of the input, the positions that are side by side in its last axis, and their channels.
_Kernels = list[tuple[int, int, int]]


def _convolution(operator: flatbuffers.Operator) -> tuple[int, _Kernels]:
    kernel, channels = _shape(operator, 1, 4), option(operator, "channels_in")
    words, all_words = kernel[3], -(-channels // 32)
    if words < 1 or all_words < 1 or all_words % words:
        raise flatbuffers.damaged(f"an LceBconv2d of {channels} channels has kernels of {words} words")
    channels //= all_words // words  # of a group
    return math.prod(_shape(operator, None, 4)[:3]) * math.prod(kernel[:3]) * channels, [(1, 1, channels)]


def _feed_forward(operator: flatbuffers.Operator) -> tuple[int, _Kernels]:
    x, hidden = _shape(operator, 0, 1), _shape(operator, 1, 2)[0]
    return 2 * math.prod(x) * hidden, [(1, 1, x[-1]), (3, 1, hidden)]


def _attention(operator: flatbuffers.Operator) -> tuple[int, _Kernels]:
    batch, height, width, channels = _shape(operator, 0, 4)[:4]
    kernels, reduction = _shape(operator, 1, 3)[0], option(operator, "reduction")
    if reduction < 1:
        raise flatbuffers.damaged(f"an attention has the reduction {reduction}")
    queries, keys = height * width, height * width // reduction**2
    # The query and the output have as many positions as the map, all other projections those of the keys.
    projections = (2 * queries + (kernels - 2) * keys) * channels**2
    return batch * (projections + 2 * queries * keys * channels), [(1, 1, channels)]


def _patch_merging(operator: flatbuffers.Operator) -> tuple[int, _Kernels]:
    channels = _shape(operator, 0, 4)[3]
    return math.prod(_shape(operator, None, 4)) * 4 * channels, [(1, 4, channels)]


# Multiply-adds of bits, and the kernels.
_BINARY_PRODUCTS: dict[str, Callable[[flatbuffers.Operator], tuple[int, _Kernels]]] = {
    "LceBconv2d": _convolution,
    "BinaryVitFeedForward": _feed_forward,
    "BinaryVitAttention": _attention,
    "BinaryVitPatchMerging": _patch_merging,
}


def option(operator: flatbuffers.Operator, name: str) -> int:
    """Returns an option of a custom operator.

    Raises:
        ValueError: The operator's options are damaged.
        ImportError: The package `flatbuffers` isn't installed.
    """
    try:
        flexbuffers = importlib.import_module("flatbuffers.flexbuffers")
    except ImportError as error:
        raise ImportError(
            "Binary products can't be inspected without the package flatbuffers, a part of TensorFlow; "
            "`pip install 'keras-binaryvit[tensorflow]'` installs it."
        ) from error
    try:
        return flexbuffers.GetRoot(operator.options).AsMap[name].AsInt
    except Exception as error:  # that package checks nothing: damaged bytes end in whatever they run into
        raise flatbuffers.damaged(f"the options of {operator.name} can't be read") from error


def _plus_ones(kernel: flatbuffers.Tensor, words: int, channels: int) -> int:
    if len(kernel.data) != 4 * kernel.size:
        raise flatbuffers.damaged(f"the kernel {kernel.name!r} has {len(kernel.data)} bytes")
    bits = np.unpackbits(np.frombuffer(kernel.data, np.uint8), bitorder="little")
    # A set bit is a -1. The last word of a group may have bits left over.
    return int(np.sum(bits.reshape(-1, 32 * words)[:, :channels] == 0))


def _constants(operators: Iterable[flatbuffers.Operator]) -> dict[str, int]:
    constants: dict[int, tuple[str, int]] = {}
    for operator in operators:
        for index, tensor in enumerate(operator.inputs):
            if tensor and tensor.data:
                kernels = (1, 3) if operator.name in _BINARY_PRODUCTS else ()
                packed = index in kernels and tensor.dtype == "int32"
                constants.setdefault(tensor.buffer, (tensor.dtype + ", bit-packed" * packed, len(tensor.data)))
    sizes: dict[str, int] = collections.Counter()
    for name, size in constants.values():
        sizes[name] += size
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


# ---- origins


def _origins(operators: Sequence[flatbuffers.Operator]) -> list[str]:
    scopes = _scopes(operators)
    root, suffix = _root(scopes)
    # An output of the model has the name of its layer, or of its key.
    own = [next((tensor.name for tensor in operator.outputs), "") for operator in operators]
    own = ["" if _is_generated(name) else name for name in own]
    return [_layer_path(scope, root, suffix) or name for scope, name in zip(scopes, own, strict=True)]


def _scopes(operators: Sequence[flatbuffers.Operator]) -> list[list[str]]:
    """Returns for each operator the scope of its output, or else of its constants, or else of what reads the output."""
    scopes = []
    readers: dict[int, list[str]] = {}
    for operator in reversed(operators):
        constants = [tensor for tensor in operator.inputs if tensor and tensor.data]
        candidates = [_scope(tensor.name) for tensor in [*operator.outputs, *constants]]
        candidates += [readers.get(id(tensor), []) for tensor in operator.outputs]
        scope = next(filter(None, candidates), [])
        readers.update((id(tensor), scope) for tensor in operator.inputs if tensor)
        scopes.append(scope)
    return scopes[::-1]


def _scope(name: str) -> list[str]:
    """Returns the scopes in a tensor's name: one of `a/b/operation`, what several joined by `;` have in common."""
    scopes = []
    for *scope, operation in (part.split("/") for part in name.split(";")):
        if scope:
            # `deploy.freeze` joins the names of nested layers with dashes. Where such a name was cut short, it stands
            # in the operation's place; the dash at its end tells it from a scope.
            cut = operation[: operation.rfind(SEPARATOR) + 1]
            scopes.append([*scope[_is_generated(scope[0]) :], *filter(None, [cut])])
    common = list(os.path.commonprefix(scopes))
    # Constants folded across layers have but the model's name in common; the first name is that of the result.
    return common if len(common) > 1 or not scopes else scopes[0]


def _is_generated(name: str) -> bool:
    return name.startswith(("StatefulPartitionedCall", "PartitionedCall"))


def _root(scopes: Sequence[list[str]]) -> tuple[str, str]:
    """Returns the scope that stands for the model, and the ending that export gave to all layers; both may be empty."""
    roots = collections.Counter(scope[0] for scope in scopes if scope)
    root, count = max(roots.items(), key=lambda item: item[1], default=("", 0))
    if 2 * count <= roots.total():
        return "", ""
    # Keras opens each layer's scope twice and TensorFlow tells the two apart, so that all scopes end in _1.
    ending = re.search(r"_\d+$", root)
    suffix = ending.group() if ending else ""
    layers = {scope[1] for scope in scopes if scope[:1] == [root] and len(scope) > 1}
    return root, suffix if all(layer.endswith((suffix, SEPARATOR)) for layer in layers) else ""


def _layer_path(scope: list[str], root: str, suffix: str) -> str:
    if scope[:1] == [root]:
        # A scope without the ending isn't a layer, but an operation inside one.
        layers = list(itertools.takewhile(lambda part: part.endswith((suffix, SEPARATOR)), scope[1:]))
        scope = [part.removesuffix(suffix) for part in layers or [root]]
    return "/".join(scope).replace(SEPARATOR, "/").strip("/")


# ---- text


def _cost_table(title: str, costs: dict[str, Cost], total: Cost) -> str:
    heads = [title, "ops", "bytes moved", "constant bytes", "binary multiply-adds", "float multiply-adds"]
    rows = [
        [name or "-", *(f"{value:,}" for value in dataclasses.astuple(cost)[: len(heads) - 1])]
        for name, cost in [*costs.items(), ("total", total)]
    ]
    return _text_table(heads, rows)


def _text_table(heads: list[str], rows: list[list[str]]) -> str:
    table = new_table(*heads)
    for row in rows:
        table.add_row(*map(printable, row))
    return as_text(table)


def printable(text: str) -> str:
    """Returns `text` without line breaks and control characters, which a name in anyone's file may have."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _shapes(shapes: Iterable[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes) or "nothing"
