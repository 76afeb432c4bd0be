"""take_any_batch: lets a file's inputs be resized to another batch."""

import collections
from typing import Any

import numpy as np

from keras_binaryvit.deploy import flatbuffer


def take_any_batch(model: Any, batch: int) -> None:
    """Writes -1 for the batch in the shapes of RESHAPE operators that keep it.

    TensorFlow's converter fixes the `batch` there, and LiteRT refuses any other after `resize_tensor_input`.
    """
    graph, names = model.subgraphs[0], flatbuffer.operator_names(model)

    def constant(place):
        data = model.buffers[graph.tensors[place].buffer].data
        return None if data is None else np.frombuffer(bytes(data), "<i4")

    def keeps_batch(operator, place):
        if names[operator.opcodeIndex] != "RESHAPE" or operator.inputs[1] != place:
            return False
        ends = operator.inputs[0], operator.outputs[0]
        return all(list(graph.tensors[end].shape[:1]) == [batch] for end in ends)

    for operator in graph.operators:
        if names[operator.opcodeIndex] != "TRANSPOSE":
            continue
        if (order := constant(operator.inputs[1])) is None or order[0] != 0:
            return  # the first side of what follows may be one of a map that is as long as the batch
    readers = collections.defaultdict(list)
    for operator in graph.operators:
        for place in operator.inputs:
            readers[place].append(operator)
    for place, operators in readers.items():
        if all(keeps_batch(operator, place) for operator in operators) and constant(place) is not None:
            shape = np.array([-1, *graph.tensors[operators[0].outputs[0]].shape[1:]], "<i4")
            graph.tensors[place].buffer = len(model.buffers)  # other tensors may have the old one
            model.buffers.append(flatbuffer.schema().BufferT(data=np.frombuffer(shape.tobytes(), np.uint8)))
            for operator in operators:
                if operator.builtinOptions is not None:
                    operator.builtinOptions.newShape = shape
