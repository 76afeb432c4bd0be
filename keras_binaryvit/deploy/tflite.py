"""read: what a `.tflite` flatbuffer says of its graph; needs the standard library only and trusts no byte."""

import dataclasses
import math
import struct
from collections.abc import Iterator, Sequence

TYPES = {  # the schema's TensorType: name and bits of an element; 0 where the tensor's shape doesn't tell
    0: ("float32", 32),
    1: ("float16", 16),
    2: ("int32", 32),
    3: ("uint8", 8),
    4: ("int64", 64),
    5: ("string", 0),
    6: ("bool", 8),
    7: ("int16", 16),
    8: ("complex64", 64),
    9: ("int8", 8),
    10: ("float64", 64),
    11: ("complex128", 128),
    12: ("uint64", 64),
    13: ("resource", 0),
    14: ("variant", 0),
    15: ("uint32", 32),
    16: ("uint16", 16),
    17: ("int4", 4),
    18: ("bfloat16", 16),
    19: ("int2", 2),
    20: ("uint4", 4),
}
_CUSTOM = 32  # the BuiltinOperator of operators that go by a name
_MAX_RANK = 32


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor: its name, shape, element type as in `TYPES`, and constant data, empty for what is computed."""

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
        bits = {name: bits for name, bits in TYPES.values()}[self.dtype]
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
    """The operators of all subgraphs, in the order of execution, and the main subgraph's inputs and outputs."""

    operators: tuple[Operator, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def read(flatbuffer: bytes) -> Model:
    """Reads a TFLite flatbuffer.

    Raises:
        ValueError: These bytes are no TFLite flatbuffer, or it is truncated or damaged; the message says where.
    """
    model = root(flatbuffer)
    content = model.content
    names = [_operator_name(code) for code in model.tables(1)]
    buffers = [_buffer(buffer, content) for buffer in model.tables(4)]
    graphs = []
    for graph in model.tables(2):
        tensors = [_tensor(tensor, buffers) for tensor in graph.tables(0)]
        operators = []
        for operator in graph.tables(3):
            inputs = _pick(tensors, operator.integers(1), "an operator's input", optional=True)
            outputs = _pick(tensors, operator.integers(2), "an operator's output")
            name = _pick(names, [operator.number(0, "<I")], "an operator's code")[0]
            operators.append(Operator(name, inputs, outputs, operator.copy(5)))
        inputs = _pick(tensors, graph.integers(1), "a graph's input")
        outputs = _pick(tensors, graph.integers(2), "a graph's output")
        graphs.append(Model(tuple(operators), inputs, outputs))
    if not graphs:
        raise ValueError("This TFLite flatbuffer has no graph.")
    return dataclasses.replace(graphs[0], operators=tuple(operator for graph in graphs for operator in graph.operators))


def root(flatbuffer: bytes) -> "_Table":
    """Returns the table of the whole model.

    Raises:
        ValueError: These bytes are no TFLite flatbuffer, or end before that table.
    """
    flatbuffer = bytes(flatbuffer)
    if len(flatbuffer) < 8 or flatbuffer[4:8] != b"TFL3":
        raise ValueError(f"This is no TFLite flatbuffer: {len(flatbuffer)} bytes that begin {flatbuffer[:8]!r}")
    content = _Bytes(flatbuffer)
    return content.table_at(content.indirect(0))


def _operator_name(code: "_Table") -> str:
    # Codes above 127 have a field of their own; older files have the narrow one only.
    number = max(code.number(0, "<b"), code.number(3, "<i"))
    if number == _CUSTOM:
        return code.text(1)
    return BUILTINS[number] if 0 <= number < len(BUILTINS) else f"BUILTIN_{number}"


def _buffer(buffer: "_Table", content: "_Bytes") -> memoryview:
    offset, size = buffer.number(1, "<Q"), buffer.number(2, "<Q")
    # Files above 2 GB keep their constants behind the flatbuffer; 0 and 1 say that this one doesn't.
    return content.slice(offset, size) if offset > 1 else buffer.blob(0)


def _tensor(tensor: "_Table", buffers: list[memoryview]) -> Tensor:
    name, shape, code = tensor.text(3), tuple(tensor.integers(0)), tensor.number(1, "<b")
    if len(shape) > _MAX_RANK or any(side < 0 for side in shape):
        raise ValueError(f"The tensor {name!r} has the impossible shape {shape[: _MAX_RANK + 1]}; the file is damaged.")
    if code not in TYPES:
        raise ValueError(f"The tensor {name!r} is of type {code}, which this version doesn't know, or is damaged.")
    index = tensor.number(2, "<I")
    return Tensor(name, shape, TYPES[code][0], index, _pick(buffers, [index], f"the tensor {name!r}")[0])


def _pick(items: list, indices: Sequence[int], what: str, optional: bool = False) -> tuple:
    for index in indices:
        if not -int(optional) <= index < len(items):
            raise ValueError(f"The flatbuffer is damaged: {what} is number {index} of {len(items)}.")
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

    def vector(self, position: int, item_size: int) -> tuple[int, int]:
        """Returns the position of the first item and the number of items of the vector that `position` refers to."""
        start = self.indirect(position)
        length = self.number(start, "<I")
        self.slice(start + 4, length * item_size)
        return start + 4, length

    def spend(self, items: int) -> None:
        self.allowance -= items
        if self.allowance < 0:
            raise ValueError(f"The flatbuffer is damaged: its {len(self.content)} bytes describe an endless graph.")

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

    def target(self, field: int) -> int:
        """Returns the position of the vector, table or text that a field refers to; 0 where it is absent."""
        position = self._field(field)
        return position and self.content.indirect(position)

    def number(self, field: int, code: str) -> int:
        position = self._field(field)
        return self.content.number(position, code) if position else 0

    def blob(self, field: int) -> memoryview:
        position = self._field(field)
        return self.content.slice(*self.content.vector(position, 1)) if position else memoryview(b"")

    def copy(self, field: int) -> bytes:
        content = self.blob(field)
        self.content.spend(len(content) // 64)
        return bytes(content)

    def text(self, field: int) -> str:
        return self.copy(field).decode("utf-8", "replace")

    def integers(self, field: int) -> tuple[int, ...]:
        position = self._field(field)
        if not position:
            return ()
        start, length = self.content.vector(position, 4)
        self.content.spend(length)
        return struct.unpack(f"<{length}i", self.content.slice(start, 4 * length))

    def tables(self, field: int) -> "Iterator[_Table]":
        position = self._field(field)
        start, length = self.content.vector(position, 4) if position else (0, 0)
        self.content.spend(length)
        for item in range(start, start + 4 * length, 4):
            yield self.content.table_at(self.content.indirect(item))


# The schema's BuiltinOperator, in its order.
BUILTINS = tuple(
    """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
    FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION
    LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH
    CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER
    BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE
    BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM
    ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE
    TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK
    LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD
    RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N
    GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE
    NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL
    PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE
    HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE
    ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU
    DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2
    UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT STABLEHLO_LOGISTIC STABLEHLO_ADD STABLEHLO_DIVIDE
    STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE
    STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL STABLEHLO_REDUCE
    STABLEHLO_ABS STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR STABLEHLO_LOG STABLEHLO_MINIMUM
    STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER STABLEHLO_REMAINDER STABLEHLO_RSQRT STABLEHLO_SELECT
    STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_SCATTER STABLEHLO_COMPARE STABLEHLO_CONVERT STABLEHLO_DYNAMIC_SLICE
    STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD STABLEHLO_IOTA STABLEHLO_DOT_GENERAL STABLEHLO_REDUCE_WINDOW
    STABLEHLO_SORT STABLEHLO_WHILE STABLEHLO_GATHER STABLEHLO_TRANSPOSE DILATE STABLEHLO_RNG_BIT_GENERATOR
    REDUCE_WINDOW STABLEHLO_COMPOSITE STABLEHLO_SHIFT_LEFT STABLEHLO_CBRT STABLEHLO_CASE
    """.split()
)
