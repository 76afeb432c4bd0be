"""with_float16_constants: large constants of a flatbuffer at half the size."""

import numpy as np

from keras_binaryvit.deploy import flatbuffer as flatbuffers

_SMALLEST = 1024  # elements; smaller ones save next to nothing
_CUSTOM, _DEQUANTIZE = 32, 6  # of the schema's BuiltinOperator
_FLOAT32, _FLOAT16 = 0, 1  # of its TensorType
_READS_FLOAT16 = 3  # the version of DEQUANTIZE


def with_float16_constants(flatbuffer: bytes) -> bytes:
    """Returns the model with its large float32 constants stored as float16, rounded to nearest.

    A DEQUANTIZE operator, which interpreters run once, makes float32 of each. Constants of custom operators stay
    as they are; one with values that float16 hasn't is a ValueError.
    """
    flatbuffers.read(flatbuffer)
    model = flatbuffers.unpack(flatbuffer)
    schema = flatbuffers.schema()
    is_custom = [max(code.builtinCode, code.deprecatedBuiltinCode) == _CUSTOM for code in model.operatorCodes]
    halves: dict[int, int] = {}  # numbers of buffers: of the float32 and of the float16 values
    for graph in model.subgraphs:
        kept = {index for op in graph.operators if is_custom[op.opcodeIndex] for index in op.inputs}
        kept.update(graph.outputs)
        added = []
        for index, tensor in enumerate(list(graph.tensors)):
            data = model.buffers[tensor.buffer].data
            if index in kept or tensor.type != _FLOAT32 or data is None or data.size < 4 * _SMALLEST:
                continue
            if tensor.buffer not in halves:
                halves[tensor.buffer] = len(model.buffers)
                model.buffers.append(schema.BufferT(data=_rounded(tensor, data)))
            half = schema.TensorT(
                shape=tensor.shape, type=_FLOAT16, buffer=halves[tensor.buffer], name=tensor.name + b"_float16"
            )
            graph.tensors.append(half)
            tensor.buffer = 0
            operator = schema.OperatorT(opcodeIndex=len(model.operatorCodes))
            operator.inputs, operator.outputs = [len(graph.tensors) - 1], [index]
            added.append(operator)
        graph.operators = added + graph.operators
    if not halves:
        return flatbuffer
    code = schema.OperatorCodeT(deprecatedBuiltinCode=_DEQUANTIZE, builtinCode=_DEQUANTIZE, version=_READS_FLOAT16)
    model.operatorCodes.append(code)
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    for buffer in set(halves) - used:
        model.buffers[buffer].data = None
    return flatbuffers.pack(model)


def _rounded(tensor, data):
    values = np.frombuffer(data.tobytes(), "<f4")
    with np.errstate(over="ignore"):
        rounded = values.astype("<f2")
    if np.isfinite(values).all() and not np.isfinite(rounded).all():
        raise ValueError(
            f"The constant {tensor.name.decode(errors='replace')!r} has the value {np.abs(values).max():.3g}; float16 "
            "ends at 65504. Convert the model without float16 constants."
        )
    return np.frombuffer(rounded.tobytes(), np.uint8)
