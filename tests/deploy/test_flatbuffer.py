import struct

import flatbuffers
import numpy as np
import pytest

from keras_binaryvit.deploy import flatbuffer as tflite

schema = pytest.importorskip("tensorflow.lite.python.schema_py_generated", reason="TensorFlow isn't installed")

TYPE_CODES = {name.lower(): code for code, name in tflite.names("TensorType").items()}
BUILTINS = {name: code for code, name in tflite.names("BuiltinOperator").items()}


def build(tensors, operators, inputs=(0,), outputs=(-1,)):
    """Returns a flatbuffer, made with TensorFlow's classes.

    Args:
        tensors: `(name, shape, dtype, data)` each, with `data` an array, the index of another tensor whose buffer it
            shares, or `None`.
        operators: `(name, inputs, outputs, options)` each, a custom one's name being none of the schema's.
        inputs: Tensors that are the graph's inputs.
        outputs: Tensors that are the graph's outputs; -1 is the last one.
    """
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version = 3
    model.buffers, graph.tensors, graph.operators, model.operatorCodes = [schema.BufferT()], [], [], []
    for name, shape, dtype, data in tensors:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), TYPE_CODES[dtype], 0
        if isinstance(data, int):
            tensor.buffer = graph.tensors[data].buffer
        elif data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.asarray(data).tobytes(), np.uint8)
            tensor.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(tensor)
    for name, op_inputs, op_outputs, options in operators:
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        if name in BUILTINS:
            code.builtinCode = BUILTINS[name]
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        else:
            code.builtinCode = code.deprecatedBuiltinCode = BUILTINS["CUSTOM"]
            code.customCode = name
        operator.opcodeIndex = len(model.operatorCodes)
        operator.inputs, operator.outputs = list(op_inputs), list(op_outputs)
        operator.customOptions = list(options) if options else None
        model.operatorCodes.append(code)
        graph.operators.append(operator)
    graph.inputs, graph.outputs = list(inputs), [index % len(tensors) for index in outputs]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.fixture
def flatbuffer():
    tensors = [
        ("x", (1, 3), "float32", None),
        ("w", (2, 3), "float32", np.arange(6, dtype="float32")),
        ("m/dense/MatMul", (1, 2), "float32", None),
        ("m/other/Mine", (1, 2), "int8", None),
    ]
    return build(tensors, [("FULLY_CONNECTED", (0, 1, -1), (2,), None), ("Mine", (2,), (3,), b"options")])


def test_reads_what_was_written(flatbuffer):
    model = tflite.read(flatbuffer)
    dense, mine = model.operators
    assert (dense.name, mine.name, mine.options) == ("FULLY_CONNECTED", "Mine", b"options")
    x, kernel, bias = dense.inputs
    assert bias is None and model.inputs == (x,) and model.outputs == mine.outputs
    assert (kernel.name, kernel.shape, kernel.dtype, kernel.nbytes) == ("w", (2, 3), "float32", 24)
    np.testing.assert_array_equal(np.frombuffer(kernel.data, "<f4"), np.arange(6))
    assert (x.data, x.nbytes, mine.outputs[0].nbytes) == (b"", 12, 2)


def test_names_and_types_are_the_schemas():
    # Whichever package the schema is from: those that TensorFlow's has.
    for kind in (schema.BuiltinOperator, schema.TensorType):
        members = {code: name for name, code in vars(kind).items() if not name.startswith("_")}
        assert members.items() <= tflite.names(kind.__name__).items()
    for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "complex64"):
        assert tflite.Tensor("", (8,), name, 0, memoryview(b"")).nbytes == 8 * np.dtype(name).itemsize
    for name, size in {"int4": 2, "bfloat16": 6, "resource": 0, "bool": 3, "int2": 1, "string": 0}.items():
        assert tflite.Tensor("", (3,), name, 0, memoryview(b"")).nbytes == size


def test_codes_of_older_and_newer_files():
    table = build([("x", (1,), "float32", None)], [("ADD", (0, 0), (0,), None)])
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(table, 0))

    def name(deprecated, builtin):
        model.operatorCodes[0].deprecatedBuiltinCode, model.operatorCodes[0].builtinCode = deprecated, builtin
        builder = flatbuffers.Builder(0)
        builder.Finish(model.Pack(builder), b"TFL3")
        return tflite.read(builder.Output()).operators[0].name

    assert name(22, 0) == "RESHAPE"
    assert name(127, 150) == "GELU"
    assert name(127, 9999) == "BUILTIN_9999"


def test_constants_behind_the_flatbuffer(flatbuffer):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(flatbuffer, 0))
    model.buffers[1].data, model.buffers[1].offset, model.buffers[1].size = None, 2000, 24

    def pack():
        builder = flatbuffers.Builder(0)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    constants = np.arange(6, dtype="float32").tobytes()
    kernel = tflite.read(pack().ljust(2000, b"\0") + constants).operators[0].inputs[1]
    assert bytes(kernel.data) == constants
    with pytest.raises(ValueError, match="points to 24 bytes at 2000"):
        tflite.read(pack().ljust(2000, b"\0") + constants[:-1])


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\x1c\0\0\0TFL", b"<!doctype html> and so on"])
def test_other_bytes(content):
    with pytest.raises(ValueError, match=f"no TFLite flatbuffer: {len(content)} bytes"):
        tflite.read(content)


def test_cut_anywhere(flatbuffer):
    whole = tflite.read(flatbuffer)
    refused = 0
    for length in range(len(flatbuffer)):
        try:
            # Only what nothing refers to may be missing.
            assert tflite.read(flatbuffer[:length]) == whole
        except ValueError:
            refused += 1
    assert refused > 0.9 * len(flatbuffer)


def test_any_byte_changed(flatbuffer):
    rng = np.random.default_rng(0)
    refused = 0
    for position in range(len(flatbuffer)):
        for value in (0, 1, 0x7F, 0x80, 0xFF, *rng.integers(0, 256, 3)):
            damaged = bytearray(flatbuffer)
            damaged[position] = value
            try:
                tflite.read(bytes(damaged))
            except ValueError:
                refused += 1
    assert refused > len(flatbuffer)


def test_impossible_values(flatbuffer):
    def change(old, new):
        assert flatbuffer.count(old) == 1
        return flatbuffer.replace(old, new)

    with pytest.raises(ValueError, match=r"'w' has the impossible shape \(2, -3\)"):
        tflite.read(change(struct.pack("<3i", 2, 2, 3), struct.pack("<3i", 2, 2, -3)))
    with pytest.raises(ValueError, match="an operator's input is number 9 of 4"):
        tflite.read(change(struct.pack("<4i", 3, 0, 1, -1), struct.pack("<4i", 3, 9, 1, -1)))
    with pytest.raises(ValueError, match="no graph"):
        tflite.read(bytes(_empty_model()))


def _empty_model():
    builder = flatbuffers.Builder(0)
    builder.Finish(schema.ModelT().Pack(builder), b"TFL3")
    return builder.Output()


def test_a_small_file_cannot_describe_an_endless_graph():
    """Vectors may lie over one another: here all operators are the same table."""
    count = 3000
    room = b"room" * (count + 1)  # in which the vector of operators is written
    operators = [("ADD_N", [0] * count, (0,), None), ("Room", (), (0,), room)]
    content = bytearray(build([("x", (1,), "float32", None)], operators))
    reader = tflite._Bytes(bytes(content))
    graph = next(reader.table_at(reader.indirect(0)).tables(2))
    operator = next(graph.tables(3)).position
    vector = content.index(room)
    for i in range(count):
        struct.pack_into("<I", content, vector + 4 + 4 * i, operator - (vector + 4 + 4 * i))
    struct.pack_into("<I", content, vector, count)
    struct.pack_into("<I", content, graph._field(3), vector - graph._field(3))
    with pytest.raises(ValueError, match="endless graph"):
        tflite.read(bytes(content))
