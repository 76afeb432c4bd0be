"""Conversion for the Larq Compute Engine: what its interpreter computes, and which operators it gets."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import parity
import pytest
from deploy_checks import functional, images, pyramid, randomize, sample_errors
from keras import layers
from requirements import HAS_LCE, needs_interpreter, needs_lce, needs_runtime

import keras_binaryvit as kb
from keras_binaryvit.deploy import flatbuffer as flatbuffers
from keras_binaryvit.deploy.freeze import binary_layers
from keras_binaryvit.deploy.verify import first_difference

if keras.backend.backend() != "tensorflow":
    pytest.skip("these conversions run in this process, which needs the TensorFlow backend", allow_module_level=True)
pytestmark = needs_interpreter

ROUTES = ["lce", "tensorflow"] if HAS_LCE else ["tensorflow"]
BINARY = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign"}


@pytest.fixture(scope="module")
def model():
    return pyramid()


@pytest.fixture(scope="module")
def flatbuffer(model):
    return kb.deploy.convert(model)


@pytest.fixture(scope="module")
def x(model):
    return images(model)


def assert_converts(model, x=None, exceptions=0, share=1e-5):
    """Checks that LCE computes what the frozen model does, binary layers in bits; returns the operators' counts."""
    x = images(model, 16) if x is None else x
    frozen = kb.deploy.freeze(model)
    flatbuffer = kb.deploy.convert(frozen)
    ops = kb.deploy.count_operators(flatbuffer)
    assert ops["LceBconv2d"] == len(binary_layers(frozen))
    expected = keras.ops.convert_to_numpy(frozen(x))
    actual = kb.deploy.run(flatbuffer, x).reshape(expected.shape)
    assert np.sum(sample_errors(actual, expected) > share) <= exceptions
    return ops


# --- The values ---


@pytest.mark.parametrize("name", ["pyramid_mini", "flat_row1_cls", "deit_fp"])
def test_equals_the_authors_recordings(name):
    recording = parity.Recording(name)
    model = recording.model()
    ops = assert_converts(model, recording.images)
    assert ops["LceBconv2d"] == {"pyramid_mini": 5 * 6 + 3 + 3, "flat_row1_cls": 12, "deit_fp": 0}[name]
    # Fewer are welcome, and then these are to be lowered. BinaryViT-Small has the blocks of the first, several times.
    assert ops.total() <= {"pyramid_mini": 335, "flat_row1_cls": 124, "deit_fp": 161}[name]
    assert not set(ops) & {"LceDequantize", "SELECT", "SELECT_V2", "GREATER", "GREATER_EQUAL", "SUB"}


@pytest.mark.parametrize("statistics", ["new", "a threshold for each filter", "some filters reversed"])
def test_sums_on_a_threshold_beside_zeros_around_a_map(statistics):
    """LCE makes up for the zeros after the bias, where a sum that is the threshold may become less."""
    x = inputs = keras.Input((6, 6, 32))
    norms = [layers.BatchNormalization(), layers.BatchNormalization()]
    for norm in norms:
        x = norm(kb.layers.QuantConv2D(32, 3, padding="same", **BINARY)(x))
    model, rng = keras.Model(inputs, x), np.random.default_rng(0)
    if statistics != "new":
        norms[0].moving_mean.assign(rng.integers(-20, 20, 32))
        norms[0].moving_variance.assign(rng.uniform(0.5, 90, 32))
    if statistics == "some filters reversed":
        norms[0].gamma.assign(rng.choice([-1.0, 0.0, 1.0], 32))
    ops = assert_converts(model, exceptions=0)
    assert ops["LceBconv2d"] == ops["LceQuantize"] == ops.total() / 2


@pytest.mark.parametrize("kind", ["sum", "product", "after an activation", "before a sign"])
def test_constant_maps_after_binary_convolutions(kind):
    """LCE's converter takes them for a number for each filter, before a sign without a word."""
    constant = np.random.default_rng(0).normal(0, 9, (6, 6, 32)).astype("float32")
    x = keras.Input((6, 6, 32))
    y = kb.layers.QuantConv2D(32, 3, padding="same", pad_values=1.0, name="mine", **BINARY)(x)
    y = keras.ops.relu(y) if kind == "after an activation" else y
    y = y * constant if kind == "product" else y + constant
    y = kb.layers.QuantConv2D(32, 1, **BINARY)(y) if kind == "before a sign" else y
    model = keras.Model(x, y)
    assert_converts(model, exceptions=0, share=0)
    if HAS_LCE:
        with pytest.raises(kb.deploy.ConversionError, match="converter='tensorflow' may write what the model computes"):
            kb.deploy.convert(model, converter="lce")


@pytest.mark.parametrize("convolution", ["Conv2D", "DepthwiseConv2D", "QuantConv2D"])
@pytest.mark.parametrize(("side", "size", "strides", "padding"), [(8, 3, 2, 1), (8, 7, 2, 3), (9, 4, 3, (1, 2))])
def test_zeros_around_a_map_before_a_convolution_with_strides(convolution, side, size, strides, padding):
    """LCE's converter takes them for "same" padding, whose zeros are elsewhere."""
    padding = padding if isinstance(padding, int) else (padding, padding)
    if convolution == "QuantConv2D":
        layer = kb.layers.QuantConv2D(32, size, strides, name="mine", **BINARY)
    else:
        filters = () if convolution == "DepthwiseConv2D" else (32,)
        layer = getattr(layers, convolution)(*filters, size, strides, name="mine")
    model = functional((side, side, 32), lambda x: layer(layers.ZeroPadding2D(padding)(x)))
    x = images(model, 4)
    expected, actual = model.predict(x, verbose=0), kb.deploy.run(kb.deploy.convert(model), x)
    assert sample_errors(actual, expected).max() < 1e-5
    if HAS_LCE and convolution != "QuantConv2D":
        with pytest.raises(kb.deploy.ConversionError, match=r"layer that differs is mine.* converter='tensorflow'"):
            kb.deploy.convert(model, converter="lce")


@needs_lce
def test_constants_for_each_filter_stay_with_lces_converter(monkeypatch):
    x = keras.Input((6, 6, 32))
    y = kb.layers.QuantConv2D(32, 3, padding="same", pad_values=1.0, **BINARY)(x)
    model = keras.Model(x, (y + np.arange(32.0, dtype="float32")) * np.full((1, 1, 32), 2.0, "float32"))
    monkeypatch.setattr("keras_binaryvit.deploy.tensorflow_converter.convert_saved_model", None)
    assert kb.deploy.count_operators(kb.deploy.convert(model))["LceBconv2d"] == 1


@pytest.mark.parametrize("converter", ROUTES)
@pytest.mark.parametrize("layer", ["LSTM", "GRU", "Bidirectional", "ConvLSTM2D"])
def test_loops(converter, layer):
    """Their bodies are graphs of their own, with constants that the main graph doesn't read."""
    binary = layers.TimeDistributed(kb.layers.QuantConv2D(32, 3, padding="same", pad_values=1.0, **BINARY))
    recurrent = {
        "LSTM": lambda: layers.LSTM(8),
        "GRU": lambda: layers.GRU(8),
        "Bidirectional": lambda: layers.Bidirectional(layers.LSTM(8, return_sequences=True)),
        "ConvLSTM2D": lambda: layers.ConvLSTM2D(4, 3, padding="same"),
    }[layer]()

    def call(x):
        x = binary(x)
        x = x if layer == "ConvLSTM2D" else layers.TimeDistributed(layers.GlobalAveragePooling2D())(x)
        return layers.Dense(3)(layers.Flatten()(recurrent(x)))

    model = functional((3, 6, 6, 32), call)
    flatbuffer = kb.deploy.convert(model, converter=converter)
    assert kb.deploy.count_operators(flatbuffer)["LceBconv2d"] == 3
    x = images(model, 4)
    # Interpreters approximate sigmoid and tanh, and loops add that up.
    assert sample_errors(kb.deploy.run(flatbuffer, x), model.predict(x, verbose=0)).max() < 1e-3
    assert first_difference(model, flatbuffer, x[0], tolerance=1e-3) is None
    model.layers[-1].kernel.assign(2 * model.layers[-1].kernel)
    assert first_difference(model, flatbuffer, x[0]).startswith(f"{model.layers[-1].name}-dense: ")


def test_verify_says_so(model, flatbuffer, x):
    result = kb.deploy.verify(model, flatbuffer, x, labels=np.zeros(len(x), int))
    assert result.agreement == 1
    assert result.largest_difference < 1e-5 and result.mean_difference <= result.largest_difference
    expected = model.predict(x, verbose=0)
    assert result.model_accuracy == result.flatbuffer_accuracy == np.mean(expected.argmax(-1) == 0)
    np.testing.assert_allclose(kb.deploy.run(flatbuffer, x), expected, atol=1e-5 * np.abs(expected).max())


def another_design(x):
    """Nothing of BinaryViT: a small network of binary convolutions among Keras' own layers."""
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(32, 3, padding="same")(x)))
    y = kb.layers.QuantConv2D(32, 3, padding="same", pad_values=1.0, kernel_constraint="weight_clip", **BINARY)(x)
    x = layers.Concatenate()([layers.BatchNormalization()(y), x])
    x = layers.MaxPooling2D()(x)
    options = {"input_quantizer": "approx_sign", "kernel_quantizer": "scaled_sign", "use_bias": False}
    x = kb.layers.QuantConv2D(64, 3, strides=2, padding="same", pad_values=1.0, **options)(x)
    x = layers.Add()([x, layers.Dense(64)(kb.layers.RPReLU()(x))])
    x = layers.Dropout(0.5)(layers.PReLU(shared_axes=[1, 2])(layers.BatchNormalization()(x)))
    return kb.layers.QuantDense(10, activation="tanh", **BINARY)(layers.Flatten()(x))


def test_another_design():
    ops = assert_converts(functional((16, 16, 3), another_design), exceptions=1)
    assert ops["LceBconv2d"] == 3


@pytest.mark.parametrize("quantizer", ["ste_sign", "approx_sign"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "valid"},
        {"padding": "same", "pad_values": 1.0},
        {"padding": "same", "pad_values": 0.0},
        {"padding": "same", "pad_values": 1.0, "strides": 2},
        {"padding": "same", "pad_values": 0.0, "strides": (1, 2)},
        {"padding": "same", "pad_values": 1.0, "dilation_rate": 2},
        {"padding": "same", "pad_values": 1.0, "groups": 2},
        {"padding": "valid", "strides": 3, "activation": "relu"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_convolutions(options, quantizer):
    """One operator packs bits, one multiplies: bias, scale and what follows are in it."""
    layer = kb.layers.QuantConv2D(64, 3, input_quantizer=quantizer, kernel_quantizer="scaled_sign", **options)
    ops = assert_converts(functional((8, 7, 64), lambda x: layers.BatchNormalization()(layer(x))))
    relu = options.get("activation") == "relu"  # between it and the norm nothing can be folded
    assert ops.total() <= 2 + 2 * relu, ops


@pytest.mark.parametrize("heads, reduction, channels", [(1, 1, 8), (2, 2, 16), (4, 1, 32), (8, 2, 64), (1, 2, 32)])
def test_attention(heads, reduction, channels):
    """The ways of one, two and more heads; 32 channels in a head have a factor that isn't exact."""
    model = functional((4, 4, channels), kb.layers.BinarySelfAttention(heads, reduction))
    ops = assert_converts(model, exceptions=2)
    assert ops["FULLY_CONNECTED"] + ops["BATCH_MATMUL"] == 2 * heads
    assert not ops["LceDequantize"]


# --- The operators ---

# Numbers of operators that are reached; fewer are welcome, and then these are to be lowered.
BLOCK = {"LceBconv2d": 7, "LceQuantize": 7, "PRELU": 8, "ADD": 15, "DEPTHWISE_CONV_2D": 11, "FULLY_CONNECTED": 4}


def test_operators_of_a_block():
    ops = assert_converts(functional((6, 6, 8), kb.layers.BinaryTransformerBlock(2, 2, 2)), exceptions=2)
    assert {name: ops[name] for name in BLOCK if ops[name] > BLOCK[name]} == {}
    assert ops.total() <= 67


def test_operators_of_the_pyramid(flatbuffer):
    ops = kb.deploy.count_operators(flatbuffer)
    assert ops["LceBconv2d"] == 14
    assert ops.total() <= 130
    assert not set(ops) & {"LceDequantize", "SELECT", "SELECT_V2", "GREATER", "GREATER_EQUAL", "SUB", "PACK", "UNPACK"}


def test_large_kernels_are_bits():
    """The converter leaves signs of a large kernel uncomputed, unless it is a constant."""
    model = functional((1, 1, 512), kb.layers.BinaryFeedForward(4))
    flatbuffer = kb.deploy.convert(model)
    kernels = 2 * 512 * 2048
    assert kernels / 8 < len(flatbuffer) < kernels / 8 + 150_000


def test_a_layer_that_stays_float_is_an_error():
    inputs = keras.Input((8, 8, 64))
    for options, message in (
        ({"input_quantizer": "ste_heaviside"}, "here: float32, its input quantizer SteHeaviside.*use a sign"),
        ({"padding": "same", "pad_values": 2.0}, "here: float32, LCE can't pad with pad_values=2.0; use pad_values=1"),
        ({"groups": 4}, "here: float32, each of its 4 groups has 16 channels, .*groups=1"),
    ):
        model = randomize(keras.Model(inputs, kb.layers.QuantConv2D(32, 3, **(BINARY | options), name="here")(inputs)))
        with pytest.raises(kb.deploy.ConversionError, match=f"(?s){message}.*strict=False"):
            kb.deploy.convert(model)
        with pytest.warns(UserWarning, match=message):
            flatbuffer = kb.deploy.convert(model, strict=False)
        assert kb.deploy.count_operators(flatbuffer)["LceBconv2d"] == 0
        kb.deploy.verify(model, flatbuffer, images(model))


def test_a_kernel_quantizer_alone_is_a_warning():
    model = functional((4, 4, 32), kb.layers.QuantConv2D(32, 3, kernel_quantizer="ste_sign", name="here"))
    with pytest.warns(UserWarning, match="here: float32, its inputs aren't quantized; set input_quantizer"):
        flatbuffer = kb.deploy.convert(model)
    kb.deploy.verify(model, flatbuffer, images(model))


def test_operators_that_no_interpreter_has_are_named():
    model = functional((4, 4, 32), keras.ops.erfinv)
    with pytest.raises(kb.deploy.ConversionError, match="Erfinv, in the layer 'erfinv"):
        kb.deploy.convert(model)


# --- Inputs and outputs ---


def pair():
    """Returns two inputs, in the opposite of their alphabetical order, and what both give."""
    left, right = keras.Input((4, 4, 32), name="right"), keras.Input((4, 4, 32), name="left")
    conv = kb.layers.QuantConv2D(32, 3, **BINARY)
    return left, right, conv(left), conv(right)


STRUCTURES = {
    "list": lambda a, b, x, y: keras.Model([a, b], keras.layers.Subtract(name="difference")([x, y])),
    "nested": lambda a, b, x, y: keras.Model(
        [a, [b]], [keras.layers.ReLU(name="z")(x), {"k": layers.ReLU(name="a")(y)}]
    ),
    "dict": lambda a, b, x, y: keras.Model({"right": a, "left": b}, {"second": y, "first": x}),
    "input as output": lambda a, b, x, y: keras.Model([a, b], [x, layers.ReLU(name="r")(b)]),
    "unused input": lambda a, b, x, y: keras.Model([a, b], keras.layers.ReLU(name="r")(x)),
}
NAMES = {
    "list": (["right", "left"], ["difference"]),
    "nested": (["right", "left"], ["z", "a"]),
    "dict": (["left", "right"], ["first", "second"]),
    "input as output": (["right", "left"], ["quant_conv2d", "r"]),
    "unused input": (["right", "left"], ["r"]),
}


@pytest.mark.parametrize("converter", ROUTES)
@pytest.mark.parametrize("name", STRUCTURES)
def test_inputs_and_outputs_by_order_and_name(name, converter):
    keras.utils.clear_session()  # layers are counted from the first
    model = randomize(STRUCTURES[name](*pair()))
    flatbuffer = kb.deploy.convert(model, converter=converter)
    content = flatbuffers.read(flatbuffer)
    assert ([t.name for t in content.inputs], [t.name for t in content.outputs]) == NAMES[name]
    signature = flatbuffers.unpack(flatbuffer).signatureDefs[0]
    for side, names in zip((signature.inputs, signature.outputs), NAMES[name], strict=True):
        assert [entry.name.decode() for entry in side] == names
    kb.deploy.verify(model, flatbuffer, images(model))


@pytest.mark.parametrize("converter", ROUTES)
@pytest.mark.parametrize("ops", ["lce", "fused"])
def test_batches(model, ops, converter):
    flatbuffer = kb.deploy.convert(model, ops, batch_size=4, converter=converter)
    assert flatbuffers.read(flatbuffer).inputs[0].shape == (4, 16, 16, 3)
    kb.deploy.verify(model, flatbuffer, images(model, 8))
    fixed = keras.Input(batch_shape=(2, 4, 4, 32))
    fixed = randomize(keras.Model(fixed, kb.layers.QuantConv2D(32, 3, **BINARY)(fixed)))
    assert flatbuffers.read(kb.deploy.convert(fixed, ops, converter=converter)).inputs[0].shape == (2, 4, 4, 32)
    with pytest.raises(ValueError, match="batch_size must be positive, and 2 where the input .* says it"):
        kb.deploy.convert(fixed, batch_size=3)


RESIZED = {
    "flattened": lambda x: layers.Dense(3)(layers.Flatten()(x)),
    "sequence": lambda x: layers.Permute((2, 1))(layers.Reshape((36, 32))(x)),
    "binary, flattened": lambda x: kb.layers.QuantDense(5, **BINARY)(layers.Flatten()(x)),
    "larger": lambda x: layers.UpSampling2D(2)(x),
    "one-dimensional": lambda x: kb.layers.QuantConv1D(32, 3, **BINARY)(layers.Reshape((36, 32))(x)),
    "steps": lambda x: layers.TimeDistributed(kb.layers.QuantDense(8, **BINARY))(layers.Reshape((4, 9, 32))(x)),
}


@needs_runtime
@pytest.mark.parametrize("converter", ROUTES)
@pytest.mark.parametrize("name", RESIZED)
def test_resized_to_another_batch(name, converter):
    from ai_edge_litert.interpreter import Interpreter
    from binaryvit_runtime import load_delegate

    inputs = keras.Input((8, 8, 32))
    model = randomize(keras.Model(inputs, RESIZED[name](kb.layers.QuantConv2D(32, 3, **BINARY)(inputs))))
    flatbuffer, x = kb.deploy.convert(model, converter=converter), images(model, 3)
    interpreter = Interpreter(model_content=flatbuffer, experimental_delegates=[load_delegate()])
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], x)
    interpreter.invoke()
    expected = kb.deploy.run(flatbuffer, x)  # one by one
    np.testing.assert_allclose(interpreter.get_tensor(target["index"]), expected, atol=1e-5 * np.abs(expected).max())


@needs_runtime
def test_where_the_batch_moves_it_is_fixed():
    """Else a side of the map that is as long as the batch would change with it."""
    inputs = keras.Input((4, 4, 32))
    x = keras.ops.transpose(kb.layers.QuantConv2D(32, 1, **BINARY)(inputs), (1, 0, 2, 3))
    x = keras.ops.transpose(keras.ops.reshape(x, (4, -1, 128)), (1, 0, 2))
    flatbuffer = kb.deploy.convert(randomize(keras.Model(inputs, x)), batch_size=4)
    (reshape,) = [op for op in flatbuffers.read(flatbuffer).operators if op.name == "RESHAPE"]
    assert np.frombuffer(reshape.inputs[1].data, "<i4")[0] == 4


@pytest.mark.parametrize("converter", ROUTES)
def test_integer_images(converter):
    def network(x):
        x = keras.layers.Conv2D(32, 1)(keras.layers.Rescaling(1 / 127.5, -1)(x))
        return keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(kb.layers.QuantConv2D(32, 3, **BINARY)(x)))

    inputs = keras.Input((8, 8, 3), dtype="uint8")
    model = randomize(keras.Model(inputs, network(inputs)))
    flatbuffer = kb.deploy.convert(model, converter=converter)
    assert flatbuffers.read(flatbuffer).inputs[0].dtype == "uint8"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype("uint8")
    assert kb.deploy.verify(model, flatbuffer, pixels).agreement == 1
    with pytest.raises(TypeError, match="takes uint8. Received: float32"):
        kb.deploy.run(flatbuffer, pixels.astype("float32"))


def test_a_model_without_a_graph():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = keras.layers.Conv2D(32, 3), kb.layers.QuantConv2D(8, 3, **BINARY)

        def call(self, x):
            return keras.ops.mean(self.conv(self.stem(x)), (1, 2))

    model = Subclassed()
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    model(x)
    flatbuffer = kb.deploy.convert(randomize(model))
    assert kb.deploy.count_operators(flatbuffer)["LceBconv2d"] == 1
    kb.deploy.verify(model, flatbuffer, x)


def test_a_model_without_a_graph_and_with_a_dictionary():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = kb.layers.QuantConv2D(8, 3, **BINARY)

        def call(self, inputs):
            return {"sum": keras.ops.mean(self.conv(inputs["image"]), (1, 2)) + inputs["bias"]}

    model = Subclassed()
    rng = np.random.default_rng(0)
    x = {"image": rng.normal(size=(4, 8, 8, 32)).astype("float32"), "bias": rng.normal(size=(4, 8)).astype("float32")}
    model(x)
    kb.deploy.verify(model, kb.deploy.convert(randomize(model)), x)


def test_equal_layers_of_one_input():
    def network(x):
        equal = [kb.layers.QuantDense(32, **BINARY) for _ in range(2)]
        outputs = [layer(x) for layer in equal]
        equal[1].set_weights(equal[0].get_weights())
        return outputs

    inputs = keras.Input((4, 4, 32))
    model = keras.Model(inputs, network(inputs))
    kb.deploy.verify(model, kb.deploy.convert(model), images(model))


@pytest.mark.parametrize(
    "arguments, message",
    [({"converter": "mine"}, "one of auto, lce, tensorflow.*'mine'"), ({"batch_size": 0}, "batch_size=0")],
)
def test_arguments_out_of_range(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        kb.deploy.convert(model, **arguments)


def test_without_lce(model, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "larq_compute_engine" else found(name))
    with pytest.raises(ImportError, match="converter='lce' needs the Larq Compute Engine.*converter='tensorflow'"):
        kb.deploy.convert(model, converter="lce")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'keras-binaryvit\[tensorflow\]'"):
        kb.deploy.convert(model)


def test_padding_with_minus_one():
    """Which LCE can't: the map is padded before its signs are taken."""
    options = {**BINARY, "padding": "same", "pad_values": -1.0, "strides": 2}
    ops = assert_converts(functional((7, 6, 32), kb.layers.QuantConv2D(32, 3, **options)))
    assert ops["LceBconv2d"] == 1


# --- Sequences and depthwise convolutions ---

ZEROS = {"PADV2", "STRIDED_SLICE", "ADD", "CONCATENATION"}
SEQUENCES = [
    ({"padding": "valid", "strides": 2}, set()),
    ({"padding": "valid", "groups": 2, "dilation_rate": 2}, set()),
    ({"padding": "same"}, set()),
    ({"padding": "same", "pad_values": 1.0, "strides": 2}, set()),
    ({"padding": "same", "pad_values": -1.0}, {"PADV2"}),
    ({"padding": "causal", "pad_values": 1.0, "dilation_rate": 2}, {"PADV2"}),
    ({"padding": "causal", "pad_values": -1.0, "strides": 2}, {"PADV2"}),
    ({"padding": "causal"}, ZEROS),
    ({"padding": "causal", "strides": 2}, ZEROS),
    ({"padding": "causal", "dilation_rate": 2, "groups": 2}, ZEROS),
    ({"padding": "causal", "dilation_rate": 4}, ZEROS),  # each output reads zeros
]


@pytest.mark.parametrize("converter", ROUTES)
@pytest.mark.parametrize(
    "options, others", SEQUENCES, ids=lambda case: "-".join(map(str, case.values())) if isinstance(case, dict) else ""
)
def test_sequences(options, others, converter):
    """The sums are integers, and the file computes exactly what the model does, not only what the frozen one does."""
    layer = kb.layers.QuantConv1D(32, 3, use_bias=False, **options, **BINARY)
    model = functional((8, 64), layer)
    flatbuffer = kb.deploy.convert(model, converter=converter)
    ops = kb.deploy.count_operators(flatbuffer)
    assert set(ops) == {"RESHAPE", "LceQuantize", "LceBconv2d"} | others
    assert ops["LceBconv2d"] == ops["LceQuantize"] == 1 and ops.total() <= 10
    x = images(model)
    np.testing.assert_array_equal(kb.deploy.run(flatbuffer, x), keras.ops.convert_to_numpy(model(x)))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_sequence_shorter_than_the_kernel(steps):
    layer = kb.layers.QuantConv1D(32, 3, padding="causal", input_quantizer="ste_sign", kernel_quantizer="scaled_sign")
    model = functional((steps, 32), layer)
    assert assert_converts(model)["LceBconv2d"] == 1
    kb.deploy.verify(model, kb.deploy.convert(model), images(model))


@pytest.mark.parametrize("ops", ["lce", "fused"])
def test_a_temporal_network(ops):
    """Reshapes between binary convolutions go, and norms become part of them."""

    def network(x):
        for dilation in (1, 2, 4):
            options = {"padding": "causal", "pad_values": 1.0, "dilation_rate": dilation, "use_bias": False}
            x = layers.BatchNormalization()(kb.layers.QuantConv1D(32, 3, **options, **BINARY)(x))
        return layers.Dense(3)(
            layers.GlobalAveragePooling1D()(kb.layers.QuantConv1D(32, 2, padding="causal", **BINARY)(x))
        )

    model = functional((20, 32), network)
    flatbuffer = kb.deploy.convert(model, ops)
    counts = kb.deploy.count_operators(flatbuffer)
    assert counts["LceBconv2d"] == counts["LceQuantize"] == counts["PADV2"] == 4 and counts["RESHAPE"] <= 3, counts
    assert not counts["DEPTHWISE_CONV_2D"] and not counts["MUL"], counts
    kb.deploy.verify(model, flatbuffer, images(model))


@pytest.mark.parametrize("converter", ROUTES)
def test_depthwise_kernels_become_constants(converter):
    options = {"depth_multiplier": 2, "padding": "same", "pad_values": 1.0, "strides": 2}
    layer = kb.layers.QuantDepthwiseConv2D(3, depthwise_quantizer="magnitude_aware_sign", name="here", **options)
    model = functional((7, 6, 8), lambda x: kb.layers.QuantConv2D(32, 1, **BINARY)(layer(x)))
    with pytest.warns(
        UserWarning, match="here: float32, no interpreter has a binary product for a QuantDepthwiseConv2D"
    ):
        flatbuffer = kb.deploy.convert(model, converter=converter)
    counts = kb.deploy.count_operators(flatbuffer)
    assert counts["DEPTHWISE_CONV_2D"] == counts["LceBconv2d"] == 1 and counts.total() <= 5, counts
    kb.deploy.verify(model, flatbuffer, images(model))


@pytest.mark.parametrize("converter", ROUTES)
def test_binary_depthwise_convolutions_are_an_error(converter):
    layer = kb.layers.QuantDepthwiseConv2D(3, depthwise_quantizer="ste_sign", input_quantizer="ste_sign", name="here")
    model = functional((6, 6, 8), layer)
    with pytest.raises(
        kb.deploy.ConversionError, match="here: float32, .*; use it without an input quantizer, or Quant"
    ):
        kb.deploy.convert(model, converter=converter)
    flatbuffer = kb.deploy.convert(model, strict=False, converter=converter)
    assert kb.deploy.count_operators(flatbuffer)["DEPTHWISE_CONV_2D"] == 1
    kb.deploy.verify(model, flatbuffer, images(model))


# --- Errors ---


def test_verify_notices_another_model(flatbuffer, x):
    other = pyramid()
    other.get_layer("head").kernel.assign(-other.get_layer("head").kernel)
    other.get_layer("head").bias.assign(-other.get_layer("head").bias)
    with pytest.raises(kb.deploy.VerificationError, match="agree on"):
        kb.deploy.verify(other, flatbuffer, x)


def test_verify_notices_a_model_that_diverged(flatbuffer, x):
    other = randomize(pyramid())
    other.get_layer("head").bias.assign(np.full(5, np.nan))
    with pytest.raises(kb.deploy.VerificationError, match="not finite"):
        kb.deploy.verify(other, flatbuffer, x)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.full((1, 16, 16, 3), np.nan), "not finite"),
        (np.zeros((1, 16, 16, 1)), r"\(16, 16, 3\).*\(16, 16, 1\)"),
        (np.zeros((0, 16, 16, 3)), "batches of 1.*Received: 0"),
    ],
)
def test_wrong_images(model, flatbuffer, images, message):
    with pytest.raises(ValueError, match=message):
        kb.deploy.verify(model, flatbuffer, images)


def test_wrong_arguments(model, flatbuffer, x):
    with pytest.raises(ValueError, match="'lce' or 'fused'.*'flex'"):
        kb.deploy.convert(model, ops="flex")
    with pytest.raises(ValueError, match="Each image needs a label"):
        kb.deploy.verify(model, flatbuffer, x, labels=[1])
    with pytest.raises(ValueError, match="no TFLite flatbuffer|flatbuffer"):
        kb.deploy.count_operators(b"nothing of the kind")
    unknown = keras.Input((None, None, 3))
    dynamic = keras.Model(unknown, layers.Conv2D(2, 3)(unknown))
    with pytest.raises(ValueError, match="must be known"):
        kb.deploy.convert(dynamic)


@pytest.mark.once
def test_command_line_in_a_new_process(model, tmp_path):
    model.save(tmp_path / "model.keras")
    output = tmp_path / "model.tflite"
    script = Path(__file__).parents[2] / "converters" / "to_lce.py"
    command = [sys.executable, script, tmp_path / "model.keras", output, "--images", "4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "14 LceBconv2d" in done.stdout and "agreement 100.00%" in done.stdout
    assert kb.deploy.count_operators(output.read_bytes())["LceBconv2d"] == 14


def test_command_line_refuses_a_cut_file_and_keeps_the_old_output(model, run_converter, tmp_path):
    model.save(tmp_path / "model.keras")
    cut = tmp_path / "cut.keras"
    cut.write_bytes((tmp_path / "model.keras").read_bytes()[:5000])
    output = tmp_path / "model.tflite"
    output.write_bytes(b"old")
    with pytest.raises(SystemExit, match="no whole .keras file"):
        run_converter("to_lce.py", cut, output)
    assert output.read_bytes() == b"old"


@needs_lce
def test_the_papers_network_is_as_lean_as_promised():
    """As it is before training; with no two constants alike it has 10 % more operators and bytes."""
    frozen = kb.deploy.freeze(kb.BinaryViT.from_preset("binaryvit_small"), check=False)  # its values are tested above
    flatbuffer = kb.deploy.convert(frozen)
    inspection = kb.deploy.inspect(flatbuffer)
    assert kb.deploy.count_operators(flatbuffer)["LceBconv2d"] == 124
    assert inspection.total.binary_multiply_adds == 3_556_675_584
    assert len(inspection.operators) <= 1200
    assert inspection.total.bytes_moved <= 0.9e9
    assert len(flatbuffer) <= 7.7e6
