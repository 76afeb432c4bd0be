"""What stands before and after fused layers: patch embeddings, position embeddings and heads, against NumPy."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from binaryvit_runtime import load_delegate
from binaryvit_runtime.profile import read_profile
from graphs import Operator, graph
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import Tensor, options, pack
from test_fused_ops import prelu, special

NONE, RELU = 0, 1
SAME, VALID = 0, 1
OPERATORS = ["CONV_2D", "BinaryVitPooling", "BinaryVitPatchMerging", "MEAN", "FULLY_CONNECTED"]


@pytest.fixture(autouse=True)
def scalar(monkeypatch):
    """The kernels of tests that don't take `kernels`: the processor's best may be SSE, which leaves much to LiteRT."""
    monkeypatch.setenv("BINARYVIT_KERNELS", "scalar")


def multiply_add(a, b, total):
    """Returns a * b + total, rounded once: a product is exact in a longdouble, and the sum has bits to spare."""
    return (a.astype(np.longdouble) * b + total).astype(np.float32)


class Network:
    """A patch embedding, a layer that keeps its values, a merging and a head; each test changes what it is about.

    Its tensors are computed in NumPy, in the order of operations that docs/operators.md and docs/runtime.md give.
    """

    def __init__(self, seed=0, batch=1, patches=(4, 6), patch=(2, 3), pixel=3, units=40, classes=11, inputs_of=None):
        rng = np.random.default_rng(seed)
        self.patches, self.patch, self.units = patches, patch, units
        image = rng.normal(size=(batch, patches[0] * patch[0], patches[1] * patch[1], pixel)).astype(np.float32)
        self.image = inputs_of(rng, image) if inputs_of else image
        shapes = {
            "filters": (units, *patch, pixel),
            "bias": (units,),
            "positions": (*patches, units),
            "outputs": (3, units),
            "merged_positions": (1, patches[0] // 2, patches[1] // 2, units),
            "weights": (classes, units),
            "class_bias": (classes,),
        }
        self.constants = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        self.kernel = rng.choice([-1, 1], (units, 4, units))
        identity = np.zeros((4, units), np.float32)
        identity[[0, 3]] = 1
        self.constants |= {
            "identity": identity,
            "kernel": pack(self.kernel).reshape(units, -1),
            "table": np.array([1, 0], np.float32).repeat(units).reshape(2, units),
            "axes": np.array([1, 2], np.int32),
        }
        convolution, dense = schema.Conv2DOptionsT(), schema.FullyConnectedOptionsT()
        convolution.padding, (convolution.strideH, convolution.strideW) = VALID, patch
        convolution.dilationHFactor = convolution.dilationWFactor = 1
        one = options(vertical=0, residual=0)
        self.operators = [
            Operator("CONV_2D", ["image", "filters", "bias"], ["embedded"], convolution),
            Operator("ADD", ["embedded", "positions"], ["placed"], schema.AddOptionsT()),
            Operator("BinaryVitPooling", ["placed", "identity"], ["layer"], one),
            Operator("BinaryVitPatchMerging", ["layer", "kernel", "table", "outputs"], ["merged"]),
            Operator("ADD", ["merged_positions", "merged"], ["last"], schema.AddOptionsT()),
            Operator("MEAN", ["last", "axes"], ["pooled"], schema.ReducerOptionsT()),
            Operator("FULLY_CONNECTED", ["pooled", "weights", "class_bias"], ["logits"], dense),
        ]

    def flatbuffer(self, outputs=("logits",), batch=None):
        batch, (height, width) = batch or len(self.image), self.patches
        half = (batch, height // 2, width // 2, self.units)
        shapes = {"image": (batch, *self.image.shape[1:]), "pooled": (batch, self.units)}
        shapes |= dict.fromkeys(("embedded", "placed", "layer"), (batch, height, width, self.units))
        shapes |= {"merged": half, "last": half, "logits": (batch, len(self.constants["weights"]))}
        tensors = {name: Tensor(shape, "float32") for name, shape in shapes.items()}
        tensors["signs"] = Tensor((batch, height, width, -(-self.units // 32)), "int32")
        for name, value in self.constants.items():
            tensors[name] = Tensor(value.shape, value.dtype.name, value)
        if "half" in self.constants:
            tensors["weights"].data = None
        return graph(tensors, self.operators, ["image"], list(outputs))

    def run(self, outputs=("logits",), num_threads=1, batch=None):
        """Returns the outputs, and the operators that the delegate ran."""
        delegate = load_delegate(num_threads, profile=True)
        interpreter = Interpreter(
            model_content=self.flatbuffer(outputs, batch), experimental_delegates=[delegate], num_threads=num_threads
        )
        index = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(index, self.image.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, self.image)
        interpreter.invoke()
        values = [interpreter.get_tensor(it["index"]) for it in interpreter.get_output_details()]
        return values, [entry.op for entry in read_profile(delegate)]

    def expected(self, activation=NONE, known=None):
        """Returns all tensors by name, where the patch embedding is `known` from what it gave."""
        c, (tall, wide) = self.constants, self.patch
        batch, (height, width) = len(self.image), self.patches
        windows = self.image[:, : height * tall, : width * wide].reshape(batch, height, tall, width, wide, -1)
        embedded = np.broadcast_to(c["bias"], (batch, height, width, self.units))
        for y in range(tall):
            for x in range(wide):
                for channel in range(windows.shape[-1]):
                    values = windows[:, :, y, :, x, channel, None]
                    embedded = multiply_add(values, c["filters"][:, y, x, channel], embedded)
        if activation == RELU:
            embedded = np.where(embedded < 0, np.float32(0), embedded)
        embedded = embedded if known is None else known
        placed = embedded + c["positions"]
        layer = placed + np.zeros_like(placed)  # what pooling adds at the edge
        taps = [layer[:, y::2, x::2] for y in (0, 1) for x in (0, 1)]
        signs = np.where(np.concatenate(taps, -1) < 0, -1, 1)
        count = ((4 * self.units - signs @ self.kernel.reshape(self.units, -1).T) // 2).astype(np.float32)
        mean = ((taps[0] + taps[1]) + (taps[2] + taps[3])) * np.float32(0.25)
        merged = prelu(count * c["outputs"][0] + c["outputs"][1] + mean, c["outputs"][2])
        last = c["merged_positions"] + merged
        rows = last.reshape(batch, -1, self.units)
        pooled = rows[:, 0]
        for position in range(1, rows.shape[1]):
            pooled = pooled + rows[:, position]
        pooled = pooled / np.float32(rows.shape[1])
        logits = np.broadcast_to(c["class_bias"], (batch, len(c["class_bias"])))
        for k in range(self.units):
            logits = multiply_add(pooled[:, k, None], c["weights"][:, k], logits)
        names = "embedded placed merged last pooled logits".split()
        return dict(zip(names, (embedded, placed, merged, last, pooled, logits), strict=True))


def check(network, outputs=("logits",), activation=NONE, ran=OPERATORS, kernels=None, **how):
    """Compares all bits; SSE has no fused multiply-adds, so there the patch embedding and the head are LiteRT's."""
    litert, known = (), None
    if kernels == "sse":
        litert = ("embedded", "logits")
        ran = [name for name in ran if name not in ("CONV_2D", "FULLY_CONNECTED")]
        outputs = dict.fromkeys((*outputs, "embedded"))
    values, names = network.run(outputs, **how)
    assert names == ran
    values = dict(zip(outputs, values, strict=True))
    if kernels == "sse":
        known = values["embedded"]
        close(known, network.expected(activation)["embedded"])
    expected = network.expected(activation, known)
    for name, value in values.items():
        if name in litert:
            close(value, expected[name])
        else:
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def close(actual, expected):
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * largest)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 3),
    halves=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    patch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    pixel=st.integers(1, 4),
    units=st.integers(1, 80),
    classes=st.integers(1, 40),
    threads=st.integers(1, 3),
)
@example(seed=0, batch=1, halves=(28, 28), patch=(4, 4), pixel=3, units=64, classes=1000, threads=2)
@example(seed=0, batch=1, halves=(2, 30), patch=(2, 2), pixel=1, units=33, classes=1, threads=3)
def test_networks(seed, batch, halves, patch, pixel, units, classes, threads, kernels):
    patches = (2 * halves[0], 2 * halves[1])
    check(Network(seed, batch, patches, patch, pixel, units, classes), kernels=kernels, num_threads=threads)


@pytest.mark.parametrize("outputs", [("embedded", "logits"), ("merged", "placed"), ("last", "embedded", "merged")])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_sums_whose_terms_are_outputs_too(outputs, num_threads, kernels):
    network, ran = Network(batch=2), OPERATORS
    if "logits" not in outputs:
        network.operators, ran = network.operators[:5], OPERATORS[:3]
    check(network, outputs, ran=ran, kernels=kernels, num_threads=num_threads)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_numbers_that_are_none(kernels):
    check(Network(patches=(2, 4), inputs_of=special), ("embedded", "placed", "merged", "logits"), kernels=kernels)


def test_numbers_at_the_ends_of_floats(kernels):
    def scaled(rng, x):
        return (x * 10 ** rng.uniform(-45, 30, x.shape)).astype(np.float32)

    check(Network(patches=(4, 4), inputs_of=scaled), ("embedded", "logits"), kernels=kernels)


def test_batches_of_any_size():
    check(Network(batch=5), batch=1)


def test_rows_and_columns_that_no_window_takes():
    network = Network()
    network.image = np.pad(network.image, [(0, 0), (0, 1), (0, 2), (0, 0)], constant_values=np.float32(9))
    check(network)


def test_an_activation_and_no_bias(kernels):
    network = Network()
    network.operators[0].options.fusedActivationFunction = RELU
    network.constants["class_bias"][:] = 0
    network.operators[6].inputs[2] = None
    check(network, ("embedded", "logits"), RELU, kernels=kernels)


def test_kept_dimensions():
    network = Network()
    network.operators = network.operators[:6]
    network.operators[5].options.keepDims = True
    (pooled,), _ = network.run(("pooled",))
    np.testing.assert_array_equal(pooled[:, 0, 0], network.expected()["pooled"])


def pad(network):
    network.operators[0].options.padding = SAME


def dilate(network):
    network.operators[0].options.dilationWFactor = 2
    network.image = np.pad(network.image, [(0, 0), (0, 0), (0, 4), (0, 0)])


def take_more_channels(network):
    network.image = np.tile(network.image, 2)
    network.constants["filters"] = np.tile(network.constants["filters"], 2)


@pytest.mark.parametrize("change", [pad, dilate, take_more_channels])
def test_other_convolutions_are_left_to_litert(change):
    network = Network()
    change(network)
    _, names = network.run()
    assert names == OPERATORS[1:]


def test_overlapping_windows_are_left_to_litert():
    network = Network(patches=(4, 8))
    network.operators[0].options.strideW = 2
    network.image = network.image[:, :, :17]  # 8 windows of 3, two apart
    _, names = network.run()
    assert names == OPERATORS[1:]


def test_other_means_and_products_are_left_to_litert():
    network = Network(units=6)
    network.operators = network.operators[:5]
    network.constants["axis"] = np.array([3], np.int32)
    keep, dense = schema.ReducerOptionsT(), schema.FullyConnectedOptionsT()
    keep.keepDims = dense.keepNumDims = True
    network.operators.append(Operator("MEAN", ["last", "axis"], ["pooled"], keep))
    network.operators.append(Operator("FULLY_CONNECTED", ["last", "weights", None], ["logits"], dense))
    (pooled, logits), names = network.run(("pooled", "logits"))
    assert names == OPERATORS[:3]
    last = network.expected()["last"]
    np.testing.assert_allclose(pooled, last.mean(-1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(logits, last @ network.constants["weights"].T, atol=1e-4)


def test_heads_of_float16_weights(kernels):
    """They are constants that LiteRT dequantizes once."""
    network = Network()
    network.constants["half"] = network.constants["weights"].astype(np.float16)
    network.constants["weights"] = network.constants["half"].astype(np.float32)
    network.operators.insert(6, Operator("DEQUANTIZE", ["half"], ["weights"], schema.DequantizeOptionsT()))
    check(network, kernels=kernels)


def test_sums_of_other_shapes_stay_sums_of_their_own():
    network = Network()
    network.constants["positions"] = network.constants["positions"][0, 0]
    check(network)


def test_networks_of_other_layers_are_left_to_litert():
    network = Network()
    embedding, *_, mean, dense = network.operators
    mean.inputs[0] = "embedded"
    network.operators = [embedding, Operator("LceQuantize", ["embedded"], ["signs"]), mean, dense]
    _, names = network.run(("logits", "signs"))
    assert names == ["LceQuantize"]


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 8, 24, 3), "CONV_2D: its output has 1280 values for each image, but 960 are added to them"),
        ((1, 1, 18, 3), "CONV_2D: a window of 2 x 3 is larger than the map of 1 x 18"),
        ((1, 8, 18, 2), "CONV_2D: the filter has 3 channels, but the input has 2"),
    ],
)
def test_images_of_another_size_are_refused(shape, message):
    interpreter = Interpreter(model_content=Network().flatbuffer(), experimental_delegates=[load_delegate()])
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], shape)
    with pytest.raises(RuntimeError, match=message):
        interpreter.allocate_tensors()


@pytest.mark.parametrize("output", ["image", "embedded"])
def test_sums_into_what_they_read_are_refused(output):
    network = Network()
    network.operators = network.operators[:3]
    network.operators[1].outputs = [output]
    network.operators[2].inputs[0] = output
    with pytest.raises((RuntimeError, ValueError)):
        network.run(("layer",))
