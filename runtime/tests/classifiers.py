"""Writes classifiers of one dense layer, with metadata or without."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


def classifier(kernel, image_shape, metadata=None, output_shape=None, batch=1):
    """Returns a model that multiplies flat images by `kernel`, `(classes, values)`.

    Args:
        kernel: The dense layer's weights.
        image_shape: Of its input, without the batch.
        metadata: Bytes that are stored under the name `binaryvit`, after other metadata.
        output_shape: Of its output, in place of `(batch, classes)`.
        batch: Images that it takes at once.
    """
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version = 3
    model.buffers = [schema.BufferT(), buffer(np.asarray(kernel, "<f4").tobytes())]
    shapes = [(batch, *image_shape), np.shape(kernel), output_shape or (batch, len(kernel))]
    graph.tensors = []
    for index, shape in enumerate(shapes):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = f"tensor_{index}", list(shape), schema.TensorType.FLOAT32
        tensor.buffer = int(index == 1)
        graph.tensors.append(tensor)
    code, node = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    node.inputs, node.outputs, node.opcodeIndex = [0, 1, -1], [2], 0
    node.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    node.builtinOptions = schema.FullyConnectedOptionsT()
    model.operatorCodes = [code]
    graph.operators, graph.inputs, graph.outputs = [node], [0], [2]
    model.subgraphs = [graph]
    if metadata is not None:
        model.metadata = []
        for name, content in (("other", b"of others"), ("binaryvit", metadata)):
            entry = schema.MetadataT()
            entry.name, entry.buffer = name, len(model.buffers)
            model.metadata.append(entry)
            model.buffers.append(buffer(content))
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def buffer(content):
    """Returns a buffer of the schema."""
    result = schema.BufferT()
    result.data = np.frombuffer(content, np.uint8)
    return result
