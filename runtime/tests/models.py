"""Writes flatbuffers of single operators, whatever their options and shapes, and runs them in both interpreters."""

import dataclasses

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int8": schema.TensorType.INT8,
    "bool": schema.TensorType.BOOL,
    "int64": schema.TensorType.INT64,
}


@dataclasses.dataclass
class Tensor:
    """A tensor of a model: `data` makes it a constant, `quantization` is its scale and zero point."""

    shape: tuple
    dtype: str
    data: np.ndarray | bytes | None = None
    quantization: tuple | None = None


def options(**values):
    """Returns a flexbuffer map of integers, and of what else is given."""
    builder = flexbuffers.Builder()
    with builder.Map():
        for name, value in values.items():
            builder.Key(name)
            builder.Add(value)
    return bytes(builder.Finish())


def single_op(name, inputs, output, custom_options=b""):
    """Returns the flatbuffer of one custom operator; an input of `None` is left out."""
    model = schema.ModelT()
    model.version = 3
    code = schema.OperatorCodeT()
    code.builtinCode = schema.BuiltinOperator.CUSTOM
    code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = name
    model.operatorCodes = [code]
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, indices = [], [], []
    for tensor in [*inputs, output]:
        if tensor is None:
            indices.append(-1)
            continue
        entry = schema.TensorT()
        entry.name = f"tensor_{len(graph.tensors)}"
        entry.shape, entry.type, entry.buffer = list(tensor.shape), TYPES[tensor.dtype], 0
        if tensor.quantization is not None:
            entry.quantization = schema.QuantizationParametersT()
            entry.quantization.scale = [tensor.quantization[0]]
            entry.quantization.zeroPoint = [tensor.quantization[1]]
        if tensor.data is not None:
            buffer = schema.BufferT()
            data = tensor.data if isinstance(tensor.data, bytes) else np.ascontiguousarray(tensor.data).tobytes()
            buffer.data = np.frombuffer(data, np.uint8)
            entry.buffer = len(model.buffers)
            model.buffers.append(buffer)
        elif tensor is not output:
            graph.inputs.append(len(graph.tensors))
        indices.append(len(graph.tensors))
        graph.tensors.append(entry)
    node = schema.OperatorT()
    node.opcodeIndex = 0
    node.inputs, node.outputs = indices[:-1], indices[-1:]
    if custom_options:
        node.customOptions = np.frombuffer(custom_options, np.uint8)
    graph.operators, graph.outputs = [node], indices[-1:]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def run(flatbuffer, *inputs, num_threads=1):
    """Returns the output of a model in LiteRT with the delegate."""
    from ai_edge_litert.interpreter import Interpreter
    from binaryvit_runtime import load_delegate

    interpreter = Interpreter(
        model_content=flatbuffer, num_threads=num_threads, experimental_delegates=[load_delegate(num_threads)]
    )
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def run_in_lce(flatbuffer, *inputs, **settings):
    """Returns the output of a model in LCE's own interpreter."""
    import larq_compute_engine as lce

    interpreter = lce.testing.Interpreter(flatbuffer, **settings)
    return np.concatenate(interpreter.interpreter.predict(list(inputs)))[None].reshape(interpreter.output_shapes[0])


def pack(values):
    """Returns the bits of +-1 values in LCE's layout: the last axis in words of 32, a set bit for -1."""
    values = np.asarray(values)
    missing = -values.shape[-1] % 32
    bits = np.pad(values < 0, [(0, 0)] * (values.ndim - 1) + [(0, missing)])
    return np.packbits(bits, axis=-1, bitorder="little").view("<i4")
