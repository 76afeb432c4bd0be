"""The structs of litert_abi.h, read back from the installed LiteRT and from the oldest one that has a wheel here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from graphs import Operator, graph
from models import Tensor

HERE = Path(__file__).parent
OLDEST = ("1.4.0", "2.1.0")  # the second on Python 3.13
RUN = """
import sys
import numpy as np
from ai_edge_litert import interpreter as litert
delegate = litert.load_delegate(sys.argv[1])
interpreter = litert.Interpreter(sys.argv[2], num_threads=3, experimental_delegates=[delegate])
interpreter.allocate_tensors()
interpreter.invoke()
print("result", interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).shape)
"""
EXPECTED = """
threads=3 interpreter=1
tensor image type=1 constant=0 bytes=576 scale=0 zero_point=0 quantization=0 dims=[1,6,8,3]
tensor kernel type=1 constant=1 bytes=432 scale=0 zero_point=0 quantization=0 dims=[4,3,3,3]
tensor bias type=1 constant=1 bytes=16 scale=0 zero_point=0 quantization=0 dims=[4]
tensor depthwise type=1 constant=1 bytes=288 scale=0 zero_point=0 quantization=0 dims=[1,3,3,8]
tensor bytes type=9 constant=0 bytes=2 scale=0.5 zero_point=-3 quantization=1 dims=[1,2]
tensor a type=1 constant=0 bytes=384 scale=0 zero_point=0 quantization=0 dims=[1,3,8,4]
tensor b type=1 constant=0 bytes=256 scale=0 zero_point=0 quantization=0 dims=[1,1,8,8]
tensor c type=1 constant=0 bytes=256 scale=0 zero_point=0 quantization=0 dims=[1,1,8,8]
tensor d type=1 constant=0 bytes=128 scale=0 zero_point=0 quantization=0 dims=[1,1,8,4]
tensor weights type=1 constant=1 bytes=128 scale=0 zero_point=0 quantization=0 dims=[4,8]
tensor result type=1 constant=0 bytes=4 scale=0 zero_point=0 quantization=0 dims=[1]
tensor biases type=1 constant=1 bytes=32 scale=0 zero_point=0 quantization=0 dims=[8]
tensor axes type=2 constant=1 bytes=8 scale=0 zero_point=0 quantization=0 dims=[2]
tensor mean type=1 constant=0 bytes=16 scale=0 zero_point=0 quantization=0 dims=[1,1,1,4]
node 3 inputs=[0,1,2] outputs=[5] padding=1 strides=2x1 activation=1 dilations=1x2
node 4 inputs=[5,3,11] outputs=[6] padding=2 strides=3x1 multiplier=2 activation=0
node 0 inputs=[6,6] outputs=[7] activation=3
node 9 inputs=[7,9,-1] outputs=[8] activation=0 format=0 keep=1
node 40 inputs=[8,12] outputs=[13] keep=1
node 32 inputs=[4,13] outputs=[10] name=Canary options=some options
replaced nodes=[5] inputs=[4,13] outputs=[10]
result (5, 7)
"""


def model():
    tensors = {
        "image": Tensor((1, 6, 8, 3), "float32"),
        "kernel": Tensor((4, 3, 3, 3), "float32", np.zeros((4, 3, 3, 3), np.float32)),
        "bias": Tensor((4,), "float32", np.zeros(4, np.float32)),
        "depthwise": Tensor((1, 3, 3, 8), "float32", np.zeros((1, 3, 3, 8), np.float32)),
        "bytes": Tensor((1, 2), "int8", quantization=(0.5, -3)),
        "a": Tensor((1, 3, 8, 4), "float32"),
        "b": Tensor((1, 1, 8, 8), "float32"),
        "c": Tensor((1, 1, 8, 8), "float32"),
        "d": Tensor((1, 1, 8, 4), "float32"),
        "weights": Tensor((4, 8), "float32", np.zeros((4, 8), np.float32)),
        "result": Tensor((1,), "float32"),
        "biases": Tensor((8,), "float32", np.zeros(8, np.float32)),
        "axes": Tensor((2,), "int32", np.array([1, 2], np.int32)),
        "mean": Tensor((1, 1, 1, 4), "float32"),
    }
    activation = schema.ActivationFunctionType
    convolution, depthwise = schema.Conv2DOptionsT(), schema.DepthwiseConv2DOptionsT()
    convolution.padding, convolution.strideH, convolution.strideW = schema.Padding.SAME, 2, 1
    convolution.fusedActivationFunction = activation.RELU
    convolution.dilationHFactor, convolution.dilationWFactor = 1, 2
    depthwise.padding, depthwise.strideH, depthwise.strideW = schema.Padding.VALID, 3, 1
    depthwise.depthMultiplier = 2
    add, dense = schema.AddOptionsT(), schema.FullyConnectedOptionsT()
    add.fusedActivationFunction = activation.RELU6
    dense.keepNumDims = True
    mean = schema.ReducerOptionsT()
    mean.keepDims = True
    operators = [
        Operator("CONV_2D", ["image", "kernel", "bias"], ["a"], convolution),
        Operator("DEPTHWISE_CONV_2D", ["a", "depthwise", "biases"], ["b"], depthwise),
        Operator("ADD", ["b", "b"], ["c"], add),
        Operator("FULLY_CONNECTED", ["c", "weights", None], ["d"], dense),
        Operator("MEAN", ["d", "axes"], ["mean"], mean),
        Operator("Canary", ["bytes", "mean"], ["result"], b"some options"),
    ]
    return graph(tensors, operators, ["image", "bytes"], ["result"])


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    if not shutil.which("g++"):
        pytest.skip("g++ isn't installed")
    library = tmp_path_factory.mktemp("canary") / "canary.so"
    source = HERE / "litert_abi_test.cc"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{HERE.parent / 'src'}"]
    subprocess.run(["g++", *flags, source, "-o", library], check=True)
    library.with_suffix(".tflite").write_bytes(model())
    return library


@pytest.mark.parametrize("which", ["installed", "oldest"])
def test_layouts(canary, which, tmp_path):
    environment = dict(os.environ)
    if which == "oldest":
        for version in OLDEST:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path]
            if subprocess.run([*command, f"ai-edge-litert=={version}"], capture_output=True).returncode == 0:
                break
        else:
            pytest.skip("pip can't install an older LiteRT")
        environment["PYTHONPATH"] = str(tmp_path)
    command = [sys.executable, "-c", RUN, canary, canary.with_suffix(".tflite")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.split("\n") == EXPECTED.lstrip("\n").split("\n"), done.stderr[-2000:]
