"""read, unpack and pack: a `.tflite` flatbuffer as a graph to look at, and as objects of its schema to change.

`read` trusts no byte; the others take a file at its word, so `read` it first.
"""

import dataclasses
import functools
import importlib
import math
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

# Bits of an element where they aren't in the type's name.
_BITS = {"bool": 8, "string": 0, "resource": 0, "variant": 0}
CUSTOM = 32  # the BuiltinOperator of operators that go by a name
_MAX_RANK = 32


@functools.cache
def schema() -> Any:
    """Returns the module of the schema's classes."""
    for name in ("ai_edge_litert.schema_py_generated", "tensorflow.lite.python.schema_py_generated"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(
        "Reading .tflite files needs their schema, which ai-edge-litert and TensorFlow bring: "
        "pip install ai-edge-litert, or pip install 'keras-binaryvit[tensorflow]'."
    )


def unpack(flatbuffer: bytes) -> Any:
    """Returns the `ModelT` of a TFLite flatbuffer."""
    return schema().ModelT.InitFromObj(schema().Model.GetRootAs(flatbuffer, 0))


def pack(model: Any) -> bytes:
    """Returns the flatbuffer of a `ModelT`."""
    import flatbuffers

    class Builder(flatbuffers.Builder):
        def StartVector(self, element_size, count, alignment):
            # Constants are read where they lie, by kernels that want whole vectors.
            alignment = 16 if element_size == 1 and count >= 16 else alignment
            super().StartVector(element_size, count, alignment)

    builder = Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@functools.cache
def names(enumeration: str) -> dict[int, str]:
    """Returns the names of an enumeration of the schema by their numbers."""
    members = vars(getattr(schema(), enumeration)).items()
    return {number: name for name, number in members if isinstance(number, int)}


def operator_names(model: Any) -> list[str]:
    """Returns the name of each operator code of a `ModelT`, such as `"CONV_2D"` or `"LceBconv2d"`."""
    codes = [(max(code.builtinCode, code.deprecatedBuiltinCode), code.customCode) for code in model.operatorCodes]
    return [(custom or b"").decode() if code == CUSTOM else names("BuiltinOperator")[code] for code, custom in codes]


def options_of(operator: Any) -> dict[str, int]:
    """Returns the options of an `OperatorT`, empty where it isn't a custom one."""
    if operator.customOptions is None or not len(operator.customOptions):
        return {}
    read = importlib.import_module("flatbuffers.flexbuffers").GetRoot(bytearray(operator.customOptions)).AsMap
    return {key.AsKey: read[key.AsKey].AsInt for key in (read.Keys[index] for index in range(len(read.Keys)))}


def as_options(options: dict[str, int]) -> np.ndarray | None:
    """Returns options as a custom `OperatorT` has them."""
    if not options:
        return None
    builder = importlib.import_module("flatbuffers.flexbuffers").Builder()
    with builder.Map():
        for key, value in options.items():
            builder.Int(key, int(value))
    return np.frombuffer(bytes(builder.Finish()), np.uint8)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor: its name, shape, element type such as `"float32"`, and constant data, empty for what is computed."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    buffer: int
    data: memoryview

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its data, or that its elements take when it is computed."""
        bits = _BITS[self.dtype] if self.dtype in _BITS else int(re.findall(r"\d+", self.dtype)[0])
        return len(self.data) or -(-self.size * bits // 8)


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator: its name, tensors (`None` where an optional input is left out) and a custom one's options."""

    name: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: bytes


@dataclasses.dataclass(frozen=True)
class Model:
    """The inputs and outputs of the main subgraph, and its operators in order of execution, then those of others."""

    operators: tuple[Operator, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def read(flatbuffer: bytes) -> Model:
    """Reads a TFLite flatbuffer.

    Raises:
        ValueError: These bytes are no TFLite flatbuffer, or it is truncated or damaged; the message says where.
    """
    flatbuffer = bytes(flatbuffer)
    if len(flatbuffer) < 8 or flatbuffer[4:8] != b"TFL3":
        raise ValueError(f"This is no TFLite flatbuffer: {len(flatbuffer)} bytes that begin {flatbuffer[:8]!r}")
    content = _Bytes(flatbuffer)
    model = content.table_at(content.indirect(0))
    codes = [_operator_name(code) for code in model.tables(1)]
    buffers = [_buffer(buffer) for buffer in model.tables(4)]
    graphs = []
    for graph in model.tables(2):
        tensors = [_tensor(tensor, buffers) for tensor in graph.tables(0)]
        operators = []
        for operator in graph.tables(3):
            inputs = _pick(tensors, operator.integers(1), "an operator's input", optional=True)
            outputs = _pick(tensors, operator.integers(2), "an operator's output")
            (name,) = _pick(codes, [operator.number(0, "<I")], "an operator's code")
            operators.append(Operator(name, inputs, outputs, operator.copy(5)))
        inputs = _pick(tensors, graph.integers(1), "a graph's input")
        outputs = _pick(tensors, graph.integers(2), "a graph's output")
        graphs.append(Model(tuple(operators), inputs, outputs))
    if not graphs:
        raise ValueError("This TFLite flatbuffer has no graph.")
    return dataclasses.replace(graphs[0], operators=tuple(operator for graph in graphs for operator in graph.operators))


def damaged(what: str) -> ValueError:
    """Returns the error of a file in which `what` is wrong."""
    return ValueError(f"The flatbuffer is damaged: {what}.")


def _operator_name(code: "_Table") -> str:
    # Codes above 127 have a field of their own; older files have the narrow one only.
    number = max(code.number(0, "<b"), code.number(3, "<i"))
    if number == CUSTOM:
        return code.text(1)
    return names("BuiltinOperator").get(number, f"BUILTIN_{number}")


def _buffer(buffer: "_Table") -> memoryview:
    offset, size = buffer.number(1, "<Q"), buffer.number(2, "<Q")
    # Files above 2 GB keep their constants behind the flatbuffer; 0 and 1 say that this one doesn't.
    return buffer.content.slice(offset, size) if offset > 1 else buffer.blob(0)


def _tensor(tensor: "_Table", buffers: list[memoryview]) -> Tensor:
    name, shape, code = tensor.text(3), tuple(tensor.integers(0)), tensor.number(1, "<b")
    if len(shape) > _MAX_RANK or any(side < 0 for side in shape):
        raise ValueError(f"The tensor {name!r} has the impossible shape {shape[: _MAX_RANK + 1]}; the file is damaged.")
    if code not in names("TensorType"):
        raise ValueError(f"The tensor {name!r} is of type {code}, which this version doesn't know, or is damaged.")
    index = tensor.number(2, "<I")
    (data,) = _pick(buffers, [index], f"the tensor {name!r}")
    return Tensor(name, shape, names("TensorType")[code].lower(), index, data)


def _pick(items: list, indices: Sequence[int], what: str, optional: bool = False) -> tuple:
    for index in indices:
        if not -int(optional) <= index < len(items):
            raise damaged(f"{what} is number {index} of {len(items)}")
    return tuple(None if index < 0 else items[index] for index in indices)


class _Bytes:
    """Bytes that are read within their bounds, and not much more often than there are any."""

    def __init__(self, content: bytes):
        self.content = memoryview(content)
        # Vectors may lie over one another, so that a small hostile file describes a graph of any size.
        self.allowance = 4 * len(content)

    def slice(self, position: int, size: int) -> memoryview:
        if not 0 <= position <= position + size <= len(self.content):
            raise ValueError(
                f"The flatbuffer is truncated or damaged: it has {len(self.content)} bytes and points to {size} bytes "
                f"at {position}."
            )
        return self.content[position : position + size]

    def number(self, position: int, code: str) -> int:
        return struct.unpack(code, self.slice(position, struct.calcsize(code)))[0]

    def indirect(self, position: int) -> int:
        return position + self.number(position, "<I")

    def spend(self, items: int) -> None:
        self.allowance -= items
        if self.allowance < 0:
            raise damaged(f"its {len(self.content)} bytes describe an endless graph")

    def table_at(self, position: int) -> "_Table":
        vtable = position - self.number(position, "<i")
        return _Table(self, position, vtable, self.number(vtable, "<H"))


@dataclasses.dataclass(frozen=True)
class _Table:
    """A flatbuffer table; fields go by their number in the schema, and an absent one reads as empty or 0."""

    content: _Bytes
    position: int
    vtable: int
    vtable_size: int

    def _field(self, field: int) -> int:
        entry = 4 + 2 * field
        offset = self.content.number(self.vtable + entry, "<H") if entry + 2 <= self.vtable_size else 0
        return offset and self.position + offset

    def number(self, field: int, code: str) -> int:
        position = self._field(field)
        return self.content.number(position, code) if position else 0

    def _vector(self, field: int, item_size: int) -> tuple[int, int]:
        """Returns the position of the first item and the number of items of a vector."""
        position = self._field(field)
        if not position:
            return 0, 0
        start = self.content.indirect(position)
        length = self.content.number(start, "<I")
        self.content.slice(start + 4, length * item_size)
        return start + 4, length

    def blob(self, field: int) -> memoryview:
        return self.content.slice(*self._vector(field, 1))

    def copy(self, field: int) -> bytes:
        content = self.blob(field)
        self.content.spend(len(content) // 64)
        return bytes(content)

    def text(self, field: int) -> str:
        return self.copy(field).decode("utf-8", "replace")

    def integers(self, field: int) -> tuple[int, ...]:
        start, length = self._vector(field, 4)
        self.content.spend(length)
        return struct.unpack(f"<{length}i", self.content.slice(start, 4 * length))

    def tables(self, field: int) -> "Iterator[_Table]":
        start, length = self._vector(field, 4)
        self.content.spend(length)
        for item in range(start, start + 4 * length, 4):
            yield self.content.table_at(self.content.indirect(item))
