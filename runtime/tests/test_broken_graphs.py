"""Graphs that LiteRT takes, though no converter writes them: outputs that nothing reads, tensors of two nodes."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from binaryvit_runtime import load_delegate
from graphs import Operator, graph
from models import Tensor, pack


def run(tensors, operators, values, outputs):
    """Returns the outputs of a graph with the delegate."""
    flatbuffer = graph(tensors, operators, list(values), outputs)
    interpreter = Interpreter(model_content=flatbuffer, experimental_delegates=[load_delegate()])
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), values.values(), strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


@pytest.mark.parametrize("unread", ["LceQuantize", "FULLY_CONNECTED", "PRELU"])
def test_nodes_whose_output_nothing_reads(unread):
    """LiteRT has no memory for it."""
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    tensors = {
        "x": Tensor((4, 64), "float32"),
        "weights": Tensor((4, 64), "float32"),
        "slope": Tensor((64,), "float32", np.ones(64, np.float32)),
        "bits": Tensor((4, 2), "int32"),
        "unread": Tensor((4, 2), "int32") if unread == "LceQuantize" else Tensor((4, 64), "float32"),
        "first": Tensor((4, 64), "float32"),
    }
    operators = {
        "LceQuantize": [Operator("LceQuantize", ["x"], ["unread"])],
        "FULLY_CONNECTED": [
            Operator("FULLY_CONNECTED", ["x", "weights"], ["unread"], schema.FullyConnectedOptionsT()),
        ],
        "PRELU": [Operator("PRELU", ["x", "slope"], ["first"]), Operator("PRELU", ["first", "slope"], ["unread"])],
    }[unread]
    operators.append(Operator("LceQuantize", ["x"], ["bits"]))
    (bits,) = run(tensors, operators, {"x": x, "weights": x}, ["bits"])
    np.testing.assert_array_equal(bits, pack(x))


def test_a_tensor_of_two_nodes_that_is_smaller_the_second_time():
    """The first node was prepared for the larger one."""
    tensors = {
        "large": Tensor((64000, 40), "int32"),
        "small": Tensor((1, 40), "int32"),
        "both": Tensor((64000, 1280), "float32"),
        "bits": Tensor((64000, 40), "int32"),
    }
    operators = [
        Operator("LceDequantize", ["large"], ["both"]),
        Operator("LceQuantize", ["both"], ["bits"]),
        Operator("LceDequantize", ["small"], ["both"]),
    ]
    values = {name: np.zeros(tensors[name].shape, np.int32) for name in ("large", "small")}
    with pytest.raises(RuntimeError, match="less data than when this was prepared: two nodes give it"):
        run(tensors, operators, values, ["bits", "both"])
