"""Writes flatbuffers of a few builtin operators, and runs them in LiteRT with the delegate and without."""

import dataclasses

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from binaryvit_runtime import load_delegate
from binaryvit_runtime.profile import read_profile
from models import TYPES, Tensor

DTYPES = {**TYPES, "float16": schema.TensorType.FLOAT16}


@dataclasses.dataclass
class Operator:
    """A node: `name` is the schema's, or a custom operator's; tensors go by name, `None` is left out."""

    name: str
    inputs: list
    outputs: list
    options: object = None  # of the schema's, such as `schema.AddOptionsT()`; bytes of a custom operator


def graph(tensors, operators, inputs, outputs):
    """Returns a flatbuffer of operators over the `tensors`, a dictionary of `models.Tensor`."""
    model = schema.ModelT()
    model.version, model.operatorCodes, model.buffers = 3, [], [schema.BufferT()]
    subgraph = schema.SubGraphT()
    subgraph.tensors, subgraph.operators = [], []
    indices = {None: -1}
    for name, tensor in tensors.items():
        entry = schema.TensorT()
        entry.name, entry.shape, entry.type, entry.buffer = name, list(tensor.shape), DTYPES[tensor.dtype], 0
        if tensor.quantization is not None:
            entry.quantization = schema.QuantizationParametersT()
            entry.quantization.scale, entry.quantization.zeroPoint = ([value] for value in tensor.quantization)
        if tensor.data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8)
            entry.buffer = len(model.buffers)
            model.buffers.append(buffer)
        indices[name] = len(subgraph.tensors)
        subgraph.tensors.append(entry)
    for operator in operators:
        builtin = getattr(schema.BuiltinOperator, operator.name, schema.BuiltinOperator.CUSTOM)
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
        if builtin == schema.BuiltinOperator.CUSTOM:
            code.customCode = operator.name
        node = schema.OperatorT()
        node.opcodeIndex = len(model.operatorCodes)
        node.inputs = [indices[name] for name in operator.inputs]
        node.outputs = [indices[name] for name in operator.outputs]
        if isinstance(operator.options, bytes):
            node.customOptions = np.frombuffer(operator.options, np.uint8)
        elif operator.options is not None:
            kind = type(operator.options).__name__.removesuffix("T")
            node.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            node.builtinOptions = operator.options
        model.operatorCodes.append(code)
        subgraph.operators.append(node)
    subgraph.inputs = [indices[name] for name in inputs]
    subgraph.outputs = [indices[name] for name in outputs]
    model.subgraphs = [subgraph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def run_both(tensors, operators, values, outputs, num_threads=1, shapes=None, xnnpack=True):
    """Returns the outputs of LiteRT alone, those with the delegate, and the operators that the delegate ran.

    The second graph has a binary operator more, because the delegate leaves graphs without any to LiteRT. `shapes` are
    new ones for inputs. Without `xnnpack` LiteRT's own kernels run what the delegate leaves.
    """
    signs = {"some": Tensor((1, 32), "float32"), "signs": Tensor((1, 1), "int32")}
    stock = graph(tensors, operators, list(values), outputs)
    ours = graph(
        {**tensors, **signs},
        [*operators, Operator("LceQuantize", ["some"], ["signs"])],
        [*values, "some"],
        [*outputs, "signs"],
    )
    delegate = load_delegate(num_threads, profile=True)
    results = []
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    for interpreter in (  # the delegate's first: what it refuses, LiteRT may not
        Interpreter(
            model_content=ours,
            num_threads=num_threads,
            experimental_delegates=[delegate],
            experimental_op_resolver_type=OpResolverType.AUTO if xnnpack else plain,
        ),
        Interpreter(model_content=stock, experimental_op_resolver_type=plain),
    ):
        details = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
        for name, shape in (shapes or {}).items():
            interpreter.resize_tensor_input(details[name], shape)
        interpreter.allocate_tensors()
        for name, value in values.items():
            interpreter.set_tensor(details[name], value)
        interpreter.invoke()
        indices = [detail["index"] for detail in interpreter.get_output_details()]
        results.append([interpreter.get_tensor(index) for index in indices[: len(outputs)]])
    operators_run = [entry.op for entry in read_profile(delegate) if entry.op != "LceQuantize"]
    return results[1], results[0], operators_run
