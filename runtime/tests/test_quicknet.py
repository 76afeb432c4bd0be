"""A network of QuickNet's kinds of layers gives LCE's bits, also after its input was resized."""

import importlib.util

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from binaryvit_runtime import load_delegate
from graphs import Operator, graph
from models import Tensor, options, pack, run_in_lce

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("larq_compute_engine"), reason="the Larq Compute Engine isn't installed"
)
SAME, VALID = 0, 1
OUTPUTS = ["total", "pooled", "features", "scores"]


def network(batch, height, width, output):
    """Returns a network of fixed weights for images of a size, and one of its tensors as output."""
    rng = np.random.default_rng(0)
    tensors = {"x": Tensor((batch, height, width, 64), "float32")}
    operators = []

    def layer(name, inputs, output, tensor, settings=b""):
        tensors[output] = tensor
        operators.append(Operator(name, inputs, [output], settings))

    def words(name, shape):
        return Tensor((*tensors[name].shape[:-1], -(-shape // 32)), "int32")

    def convolution(x, output, sides, channels, units, size, dtype="float32", stride=1, groups=1, **changes):
        """All have ones around the map, where they have anything."""
        kernel = pack(rng.choice([-1, 1], (units, size, size, channels // groups)))
        constants = {
            "kernel": Tensor(kernel.shape, "int32", kernel),
            "multiplier": Tensor((units,), "float32", rng.normal(size=units).astype(np.float32)),
            "bias": Tensor((units,), "float32", rng.normal(size=units).astype(np.float32)),
            "threshold": Tensor((units,), "int32", rng.integers(0, kernel[0].size * 32, units, dtype=np.int32)),
        }
        tensors.update({f"{output}_{role}": tensor for role, tensor in constants.items()})
        unused = ("multiplier", "bias") if dtype == "int32" else ("threshold",)
        settings = {
            "channels_in": channels,
            "dilation_height_factor": 1,
            "dilation_width_factor": 1,
            "fused_activation_function": 0,
            "pad_values": 1,
            "padding": SAME,
            "stride_height": stride,
            "stride_width": stride,
        }
        inputs = [x, *(None if role in unused else f"{output}_{role}" for role in constants)]
        depth = -(-units // 32) if dtype == "int32" else units
        quantization = (0.5, 3) if dtype == "int8" else None
        shape = Tensor((batch, *sides, depth), dtype, quantization=quantization)
        layer("LceBconv2d", inputs, output, shape, options(**settings | changes))

    half, quarter = (height // 2, width // 2), (height // 4, width // 4)
    layer("LceQuantize", ["x"], "x_signs", words("x", 64))
    convolution("x_signs", "block", (height, width), 64, 64, 3, fused_activation_function=1)
    layer("ADD", ["block", "x"], "total", tensors["x"], schema.AddOptionsT())
    layer("LceQuantize", ["total"], "total_signs", words("x", 64))
    convolution("total_signs", "strided", half, 64, 64, 3, "int32", stride=2, groups=2)
    pooling = {"filter_height": 2, "filter_width": 2, "padding": SAME, "stride_height": 2, "stride_width": 2}
    layer("LceBMaxPool2d", ["strided"], "pooled", Tensor((batch, *quarter, 2), "int32"), options(**pooling))
    convolution("pooled", "wide", quarter, 64, 96, 1)
    maximum = schema.Pool2DOptionsT()
    maximum.padding, maximum.strideW, maximum.strideH, maximum.filterWidth, maximum.filterHeight = SAME, 1, 1, 3, 3
    layer("MAX_POOL_2D", ["wide"], "highest", tensors["wide"], maximum)
    layer("LceQuantize", ["highest"], "features", words("wide", 96))
    inner = tuple(side - 2 for side in quarter)
    convolution("features", "scores", inner, 96, 40, 3, "int8", padding=VALID)
    return graph(tensors, operators, ["x"], [output])


@pytest.mark.parametrize("output", OUTPUTS)
def test_quicknets_layers_give_lces_bits(output, kernels):
    rng = np.random.default_rng(1)
    interpreter = Interpreter(
        model_content=network(1, 12, 16, output), num_threads=2, experimental_delegates=[load_delegate(2)]
    )
    for shape in (1, 12, 16), (2, 12, 16), (3, 20, 12), (1, 12, 16):
        x = rng.normal(size=(*shape, 64)).astype(np.float32)
        interpreter.resize_tensor_input(0, x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(0, x)
        interpreter.invoke()
        actual = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        expected = run_in_lce(network(*shape, output), x, use_indirect_bgemm=True)
        np.testing.assert_array_equal(actual, expected)
        assert len(np.unique(expected)) > 3  # it isn't constant
