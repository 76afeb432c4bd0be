"""with_int8_layers: the convolutions and dense layers that aren't binary, in int8.

TensorFlow's quantizer works on finished files, and leaves custom operators as they are. Its calibration doesn't know
them, so binaryvit-runtime runs the file on representative inputs and gives the ranges of values.

Only operators that sum several inputs with a constant kernel are quantized. The others are affine maps in front of
signs, sums, and products of activations: int8 would flip their signs, and converting to int8 and back costs more than
they do.
"""

import importlib
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_binaryvit.deploy import flatbuffer, interpreters


def with_int8_layers(content: bytes, representative_data: np.ndarray | Iterable[Any]) -> bytes:
    """Returns a file whose weighted float operators are int8; inputs, outputs and binary operators stay as they are.

    The data is an array or batches, each as `run` takes it or with targets after it, which are ignored.
    """
    operators = flatbuffer.read(content).operators
    model = flatbuffer.unpack(content)
    graph = model.subgraphs[0]
    # Those of the bodies of loops, which come after, stay as they are: their values have as many ranges as steps.
    chosen = [source for source, read in zip(graph.operators, operators, strict=False) if _is_weighted(read)]
    indices = sorted({int(index) for source in chosen for index in (source.inputs[0], source.outputs[0])})
    for index, (low, high) in zip(indices, _ranges(content, indices, representative_data), strict=True):
        if low < high:  # a range of one value has no scale; its operators stay float32
            limits = flatbuffer.schema().QuantizationParametersT(min=[low], max=[high])
            graph.tensors[index].quantization = limits
    quantize = importlib.import_module("tensorflow.lite.python.convert").mlir_quantize
    return _with_names(quantize(flatbuffer.pack(model)), content)


def _is_weighted(operator: flatbuffer.Operator) -> bool:
    if operator.name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        return False
    kernel = operator.inputs[1]
    if kernel is None or not kernel.data or kernel.dtype != "float32":
        return False
    return operator.name != "DEPTHWISE_CONV_2D" or kernel.shape[1] * kernel.shape[2] > 1


def _ranges(content: bytes, indices: list[int], data: Any) -> list[tuple[float, float]]:
    """Returns the least and the greatest value of tensors over all inputs."""
    model, interpreter = flatbuffer.read(content), interpreters.observing_interpreter(content)
    inputs = [detail["index"] for detail in interpreter.get_input_details()]
    low, high = np.full(len(indices), np.inf), np.full(len(indices), -np.inf)
    for batch in [data] if isinstance(data, np.ndarray) else data:
        arrays = interpreters.prepared(model, keras.utils.unpack_x_y_sample_weight(batch)[0])
        size = model.inputs[0].shape[0]
        for start in range(0, len(arrays[0]), size):
            for index, array in zip(inputs, arrays, strict=True):
                interpreter.set_tensor(index, array[start : start + size])
            interpreter.invoke()
            values = [interpreter.get_tensor(index) for index in indices]
            low = np.minimum(low, [value.min() for value in values])
            high = np.maximum(high, [value.max() for value in values])
    if indices and not np.isfinite(low).all():
        raise ValueError("representative_data is empty: about 100 prepared inputs give the ranges of int8 values.")
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _with_names(quantized: bytes, content: bytes) -> bytes:
    """Gives the tensors of custom operators their names again, which the quantizer numbers; `inspect` reads them."""
    model, before = flatbuffer.unpack(quantized), flatbuffer.unpack(content)
    for source, old in zip(_custom(model), _custom(before), strict=True):
        for ours, theirs in zip((*source.inputs, *source.outputs), (*old.inputs, *old.outputs), strict=True):
            tensor = before.subgraphs[0].tensors[theirs]
            if ours >= 0 and (theirs in old.outputs or before.buffers[tensor.buffer].data is not None):
                model.subgraphs[0].tensors[ours].name = tensor.name
    return flatbuffer.pack(model)


def _custom(model: Any) -> list[Any]:
    codes = [code.customCode for code in model.operatorCodes]
    return [operator for operator in model.subgraphs[0].operators if codes[operator.opcodeIndex]]
