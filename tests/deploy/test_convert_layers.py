"""Conversion of single layers: what the file computes, layers around binary ones, and layers that stay float."""

import keras
import numpy as np
import pytest
from deploy_checks import BINARY, CONVERTERS, assert_converts, functional, images, randomize, sample_errors
from keras import layers
from requirements import HAS_LCE, needs_interpreter, needs_lce

import keras_binaryvit as kb
from keras_binaryvit.deploy.verify import first_difference

if keras.backend.backend() != "tensorflow":
    pytest.skip("these conversions run in this process, which needs the TensorFlow backend", allow_module_level=True)
pytestmark = needs_interpreter


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


@needs_lce
def test_constants_for_each_filter_stay_with_lces_converter(monkeypatch):
    x = keras.Input((6, 6, 32))
    y = kb.layers.QuantConv2D(32, 3, padding="same", pad_values=1.0, **BINARY)(x)
    model = keras.Model(x, (y + np.arange(32.0, dtype="float32")) * np.full((1, 1, 32), 2.0, "float32"))
    monkeypatch.setattr("keras_binaryvit.deploy.tensorflow_converter.convert_saved_model", None)
    assert kb.deploy.count_operators(kb.deploy.convert(model))["LceBconv2d"] == 1


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


def test_padding_with_minus_one():
    """Which LCE can't: the map is padded before its signs are taken."""
    options = {**BINARY, "padding": "same", "pad_values": -1.0, "strides": 2}
    ops = assert_converts(functional((7, 6, 32), kb.layers.QuantConv2D(32, 3, **options)))
    assert ops["LceBconv2d"] == 1


@pytest.mark.parametrize("converter", CONVERTERS)
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


@pytest.mark.parametrize("converter", CONVERTERS)
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


@pytest.mark.parametrize("converter", CONVERTERS)
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


@pytest.mark.parametrize("converter", CONVERTERS)
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
