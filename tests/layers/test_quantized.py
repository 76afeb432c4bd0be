"""The layers with quantized kernels against Larq's, the recordings of the authors' code, and NumPy."""

import re
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from gradients import layer_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from larq_recording import LAYERS, layer_arrays, layer_upstream, recording
from requirements import needs_larq

from keras_binaryvit import constraints, layers, quantizers
from keras_binaryvit.layers import quantized
from keras_binaryvit.layers.quantized import QuantConv1D, QuantConv2D, QuantDense, QuantDepthwiseConv2D

BINARY = {"input_quantizer": "approx_sign", "kernel_quantizer": "scaled_sign"}


@pytest.fixture(scope="module")
def golden():
    """What the authors' code computes, arrays as in their layout (NCHW, kernels with the outputs first)."""
    with np.load(Path(__file__).parents[1] / "golden" / "quantizers.npz") as arrays:
        return dict(arrays)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def case_name(case):
    name, arguments, shape = case
    return "-".join([name, *(f"{key}={value}" for key, value in arguments.items()), str(shape)])


def assert_close(actual, expected, share):
    """Compares within `share` of the largest expected magnitude."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=share * np.abs(expected).max())


# --- Larq ---


@needs_larq
@pytest.mark.parametrize("index", range(len(LAYERS)), ids=[case_name(case) for case in LAYERS])
def test_equals_larq(index):
    name, arguments, shape = LAYERS[index]
    larq = recording()
    x, kernel, bias = layer_arrays(arguments, shape)
    layer = getattr(quantized, name)(**arguments)
    layer.build(shape)
    layer.set_weights([kernel, bias] if layer.use_bias else [kernel])
    expected = larq[f"layer{index}"]
    assert layer.compute_output_shape(shape) == expected.shape
    if f"layer{index}_to_input" not in larq:
        assert_close(numpy(layer(x)), expected, 1e-6)
        return
    outputs, (to_input,), to_weights = layer_gradients(layer, x, upstream=layer_upstream(expected.shape))
    assert_close(outputs, expected, 1e-6)
    assert_close(to_input, larq[f"layer{index}_to_input"], 1e-5)
    assert_close(to_weights[layer.kernel.path], larq[f"layer{index}_to_kernel"], 1e-5)


# --- The authors' code ---


@pytest.fixture
def authors_sign(monkeypatch):
    """Signs with their sign(0) = 0, which the recordings hold; everything else is ours."""
    monkeypatch.setattr(quantizers, "_sign", ops.sign)


def recorded_dense(golden, input_quantizer="approx_sign"):
    layer = QuantDense(12, use_bias=False, input_quantizer=input_quantizer, kernel_quantizer="centered_scaled_sign")
    layer.build((None, None, 16))
    layer.kernel.assign(golden["linear/weight"].T)
    return layer


def test_dense_equals_the_authors(golden, authors_sign):
    layer = recorded_dense(golden)
    outputs, (to_input,), to_weights = layer_gradients(layer, golden["linear/x"], upstream=golden["linear/grad_output"])
    assert_close(outputs, golden["linear/y"], 1e-5)
    assert_close(to_input, golden["linear/grad_x"], 1e-4)
    assert_close(to_weights[layer.kernel.path].T, golden["linear/grad_weight"], 1e-4)


def test_dense_with_real_inputs_equals_the_authors(golden, authors_sign):
    layer = recorded_dense(golden, input_quantizer=None)
    assert not layer.is_binary
    assert_close(numpy(layer(golden["linear/x"])), golden["linear/y_fp_input"], 1e-5)


def test_dense_with_our_sign_equals_the_authors_where_nothing_is_zero(golden):
    x, expected = golden["linear/x"], golden["linear/y"]
    positions = (x != 0).all(-1)
    units = (golden["linear/effective_weight"] != 0).all(1)
    assert positions.sum() == 20 and units.sum() == 9
    outputs = numpy(recorded_dense(golden)(x))
    assert_close(outputs[positions][:, units], expected[positions][:, units], 1e-5)


@pytest.mark.parametrize("name", ["conv", "conv_bias"])
def test_conv_equals_the_authors(golden, name, authors_sign):
    array = {key.removeprefix(f"{name}/"): value for key, value in golden.items() if key.startswith(f"{name}/")}
    x, y, upstream, expected = (array[key].transpose(0, 2, 3, 1) for key in ("x", "y", "grad_output", "grad_x"))
    layer = QuantConv2D(6, 2, strides=2, use_bias="bias" in array, **BINARY)
    layer.build(x.shape)
    layer.kernel.assign(array["weight"].transpose(2, 3, 1, 0))
    if layer.use_bias:
        layer.bias.assign(array["bias"])
    outputs, (to_input,), to_weights = layer_gradients(layer, x, upstream=upstream)
    assert_close(outputs, y, 1e-5)
    assert_close(to_input, expected, 1e-4)
    assert_close(to_weights[layer.kernel.path].transpose(3, 2, 0, 1), array["grad_weight"], 1e-4)
    if layer.use_bias:
        assert_close(to_weights[layer.bias.path], array["grad_bias"], 1e-4)


# --- Shapes ---

# JAX compiles every new shape.
SHAPES = settings(max_examples=5 if keras.backend.backend() == "jax" else 20, deadline=None, derandomize=True)


@SHAPES
@given(batch=st.lists(st.integers(1, 4), min_size=1, max_size=3), channels=st.integers(1, 9), units=st.integers(1, 9))
def test_dense_output_shape(batch, channels, units):
    layer = QuantDense(units, **BINARY)
    shape = (*batch, channels)
    outputs = layer(normal(*shape))
    assert tuple(outputs.shape) == layer.compute_output_shape(shape) == (*batch, units)
    assert layer(keras.KerasTensor((None, *shape[1:]))).shape == (None, *batch[1:], units)


@SHAPES
@given(
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["valid", "same"]),
    pad_values=st.sampled_from([0.0, 1.0, -1.0]),
    filters=st.integers(1, 4),
)
def test_conv_output_shape(size, kernel_size, stride, dilation, padding, pad_values, filters):
    layer = QuantConv2D(
        filters,
        kernel_size,
        strides=stride if dilation == 1 else 1,
        dilation_rate=dilation,
        padding=padding,
        pad_values=pad_values,
        **BINARY,
    )
    shape = (2, *size, 3)
    outputs = layer(normal(*shape))
    assert tuple(outputs.shape) == layer.compute_output_shape(shape)
    assert layer(keras.KerasTensor((None, *shape[1:]))).shape == (None, *outputs.shape[1:])


def np_conv1d(x, kernel, stride, dilation, front, back, pad_values):
    """Returns the convolution of sequences, padded in front and behind."""
    x = np.pad(x, ((0, 0), (front, back), (0, 0)), constant_values=pad_values)
    reach = (len(kernel) - 1) * dilation + 1
    steps = range(0, x.shape[1] - reach + 1, stride)
    return np.stack([np.einsum("bkc,kcf->bf", x[:, t : t + reach : dilation], kernel) for t in steps], axis=1)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize("pad_values", [0.0, 1.0, -1.0])
def test_causal_convolution(pad_values, stride, dilation, data_format):
    options = {"strides": stride, "dilation_rate": dilation, "pad_values": pad_values, "data_format": data_format}
    layer = QuantConv1D(4, 3, padding="causal", use_bias=False, **options, **BINARY)
    x, kernel = normal(2, 9, 5), normal(3, 5, 4, seed=1)
    given = x if data_format == "channels_last" else x.transpose(0, 2, 1)
    layer.build(given.shape)
    layer.kernel.assign(kernel)
    signs, kernel_signs = np.where(x >= 0, 1.0, -1.0), np.where(kernel >= 0, 1.0, -1.0)
    expected = np_conv1d(signs, kernel_signs, stride, dilation, 2 * dilation, 0, pad_values)
    expected = expected * np.abs(kernel).mean((0, 1))
    if data_format == "channels_first":
        expected = expected.transpose(0, 2, 1)
    assert layer.compute_output_shape(given.shape) == expected.shape
    if data_format == "channels_first" and keras.backend.backend() == "tensorflow":  # has no such one on a CPU
        return
    outputs = numpy(layer(given))
    assert_close(outputs, expected, 1e-6)


def test_a_causal_convolution_of_any_length():
    inputs = keras.Input((None, 3))
    layer = QuantConv1D(4, 3, padding="causal", pad_values=1.0, **BINARY)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, 4)
    for steps in (2, 7):
        x = normal(2, steps, 3)
        np.testing.assert_allclose(model.predict(x, verbose=0), numpy(layer(x)), rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pad_values", [0.0, 1.0, -1.0])
def test_conv_of_images_of_any_size(pad_values, stride):
    inputs = keras.Input((None, None, 3))
    layer = QuantConv2D(4, 3, strides=stride, padding="same", pad_values=pad_values, **BINARY)
    model = keras.Model(inputs, layer(inputs))
    for shape in ((1, 6, 9, 3), (2, 5, 4, 3)):
        x = normal(*shape)
        expected = numpy(layer(x))
        assert expected.shape == layer.compute_output_shape(shape)
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-6)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        traced = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 3))])
        np.testing.assert_allclose(traced(x), expected, rtol=1e-6)


def test_channels_first_equals_channels_last():
    arguments = {"filters": 4, "kernel_size": (2, 3), "padding": "same", "pad_values": 1.0, **BINARY}
    last = QuantConv2D(**arguments)
    first = QuantConv2D(**arguments, data_format="channels_first")
    shape = (2, 3, 5, 6)
    x = normal(*shape)
    expected = numpy(last(x.transpose(0, 2, 3, 1)))
    assert first.compute_output_shape(shape) == (2, 4, 5, 6)
    if keras.backend.backend() == "tensorflow":  # has no such convolution on a CPU
        return
    first.build(shape)
    bias = normal(4)
    for layer in (first, last):
        layer.set_weights([last.get_weights()[0], bias])
    np.testing.assert_allclose(numpy(first(x)).transpose(0, 2, 3, 1), expected + bias, rtol=1e-5, atol=1e-6)


# --- Configuration ---

LAYERS_TO_SAVE = [
    QuantDense(5, activation="relu", **BINARY, kernel_constraint="weight_clip", name="dense"),
    QuantDense(
        5,
        use_bias=False,
        input_quantizer=quantizers.SteTern(0.2, clip_value=None),
        kernel_quantizer=quantizers.DoReFa(3, "weights"),
        kernel_constraint=constraints.WeightClip(0.5),
        dtype="mixed_bfloat16",
    ),
    QuantDense(5),
    QuantConv2D(
        6,
        (2, 3),
        strides=(2, 1),
        padding="same",
        pad_values=-1.0,
        groups=2,
        input_quantizer=quantizers.SteSign(0.5),
        kernel_quantizer=quantizers.ScaledSign(centered=True),
        kernel_constraint="weight_clip",
    ),
    QuantConv2D(5, 2, dilation_rate=2, activation="tanh", kernel_quantizer=quantizers.NoOp(precision=1)),
    QuantConv1D(6, 3, padding="causal", pad_values=1.0, groups=2, **BINARY, bias_constraint="weight_clip"),
    QuantDepthwiseConv2D(3, depth_multiplier=2, padding="same", pad_values=-1.0, depthwise_quantizer="ste_sign"),
]


@pytest.mark.parametrize("layer", LAYERS_TO_SAVE, ids=lambda layer: layer.name)
def test_config(layer):
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer)).name == layer.name
    for name in ("input_quantizer", "kernel_quantizer", "kernel_constraint", "depthwise_constraint"):
        ours, theirs = getattr(layer, name, None), getattr(copy, name, None)
        assert type(ours) is type(theirs)
        assert ours is None or ours.get_config() == theirs.get_config()
    assert getattr(copy, "pad_values", None) == getattr(layer, "pad_values", None)
    assert copy.is_binary == layer.is_binary


def test_saves_and_loads(tmp_path):
    inputs = keras.Input((6, 7, 4))
    x = QuantConv2D(6, 3, padding="same", pad_values=1.0, kernel_constraint="weight_clip", **BINARY)(inputs)
    x = QuantDepthwiseConv2D(3, depthwise_quantizer="ste_sign", depthwise_constraint="weight_clip")(x)
    x = keras.layers.Reshape((-1, 6))(x)
    x = QuantConv1D(6, 3, padding="causal", pad_values=-1.0, **BINARY)(x)
    x = QuantDense(5, input_quantizer="ste_sign", kernel_quantizer="centered_scaled_sign")(x)
    model = keras.Model(inputs, QuantDense(3, **BINARY)(x))
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    x = normal(2, 6, 7, 4)
    np.testing.assert_array_equal(copy.predict(x, verbose=0), model.predict(x, verbose=0))
    assert copy.layers[1].pad_values == 1 and isinstance(copy.layers[1].kernel_constraint, constraints.WeightClip)


@pytest.mark.parametrize(
    ("input_quantizer", "kernel_quantizer", "expected"),
    [
        ("ste_sign", "scaled_sign", True),
        (quantizers.DoReFa(1), "ste_sign", True),
        (None, "ste_sign", False),
        ("ste_sign", None, False),
        ("ste_sign", "ste_tern", False),
        ("ste_sign", quantizers.NoOp(precision=1), False),
        (ops.sign, "ste_sign", False),
    ],
)
def test_is_binary(input_quantizer, kernel_quantizer, expected):
    arguments = {"input_quantizer": input_quantizer, "kernel_quantizer": kernel_quantizer}
    assert QuantDense(2, **arguments).is_binary is QuantConv2D(2, 1, **arguments).is_binary is expected


LARQS = """QuantConv2DTranspose QuantConv3D QuantConv3DTranspose QuantLocallyConnected1D QuantLocallyConnected2D
    QuantSeparableConv1D QuantSeparableConv2D""".split()


@pytest.mark.parametrize("name", LARQS)
def test_layers_of_larq_that_are_not_here(name):
    with pytest.raises(
        AttributeError, match=f"no layer {name}, .* Use (keras.layers|QuantConv|QuantDepthwise).* instead"
    ):
        getattr(layers, name)
    assert name not in layers.__all__
    with pytest.raises(AttributeError, match="no attribute 'QuantSomething'"):
        layers.QuantSomething  # noqa: B018


def test_all_layers_of_larq_are_here_or_answered():
    names = (Path(__file__).parents[1] / "larq_names.txt").read_text().split()
    names = {name.removeprefix("lq.layers.") for name in names if re.match(r"lq\.layers\.Quant(?!izer)", name)}
    assert names == {*LARQS, "QuantDense", "QuantConv1D", "QuantConv2D", "QuantDepthwiseConv2D"}


# --- The warning of a kernel without a constraint ---


def warnings_of(build):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build()
    return [str(warning.message) for warning in caught]


UNCLIPPED = [
    (lambda **options: QuantDense(3, **options), (2, 4)),
    (lambda **options: QuantConv1D(3, 2, **options), (2, 5, 4)),
    (lambda **options: QuantConv2D(3, 2, **options), (2, 5, 5, 4)),
    (lambda kernel_quantizer: QuantDepthwiseConv2D(2, depthwise_quantizer=kernel_quantizer), (2, 5, 5, 4)),
]


@pytest.mark.parametrize("create, shape", UNCLIPPED, ids=["dense", "conv1d", "conv2d", "depthwise"])
def test_warns_once_of_a_binary_kernel_without_a_constraint(create, shape):
    layer = create(kernel_quantizer="ste_sign")

    def use():
        layer.build(shape)
        layer(normal(*shape))

    (message,) = warnings_of(use)
    assert message.startswith(f"The layer {layer.name!r} ({type(layer).__name__}) has a 1-bit kernel and no constraint")
    assert "kernel_constraint='weight_clip'" in message and "SteSign(clip_value=1.0)" in message


@pytest.mark.parametrize(
    "create",
    [
        lambda: QuantDense(3, kernel_quantizer="ste_sign", kernel_constraint="weight_clip"),
        lambda: QuantDense(3, kernel_quantizer=quantizers.SteSign(clip_value=None)),
        lambda: QuantDense(3, kernel_quantizer="ste_tern"),
        lambda: QuantDense(3, input_quantizer="ste_sign"),
        lambda: QuantDense(3, kernel_quantizer=quantizers.NoOp(precision=1)),
        lambda: layers.BinaryProjection(4),
        lambda: layers.BinaryTransformerBlock(2, 2),
        lambda: layers.PatchMerging(8),
        lambda: QuantDepthwiseConv2D(2, depthwise_quantizer="ste_sign", depthwise_constraint="weight_clip"),
    ],
)
def test_no_warning(create):
    assert warnings_of(lambda: create().build((None, 4, 4, 4))) == []


@pytest.mark.parametrize("layer", [QuantDense, lambda units, **kwargs: QuantConv2D(units, 1, **kwargs)])
@pytest.mark.parametrize("name", ["input_quantizer", "kernel_quantizer"])
def test_refuses_an_unknown_quantizer(layer, name):
    with pytest.raises(ValueError, match="'sign_of_x'"):
        layer(3, **{name: "sign_of_x"})


# --- Mixed precision ---

CHANNELS, UNITS = 8000, 64  # sums that neither float16 nor bfloat16 holds
MAGNITUDE = 1 + 2.0**-11  # nor this scale; its mean over the channels is exact in float32


def low_precision(array, dtype):
    return numpy(ops.cast(ops.cast(np.asarray(array, "float32"), dtype), "float32"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("build", ["dense", "conv"])
def test_a_binary_product_is_exact_in_mixed_precision(build, dtype):
    rng = np.random.default_rng(0)
    share = rng.uniform(0, 1, size=UNITS)
    signs = np.where(rng.uniform(size=(CHANNELS, UNITS)) < share, 1.0, -1.0).astype("float32")
    sums = signs.sum(0)
    arguments = {"input_quantizer": "ste_sign", "kernel_quantizer": "scaled_sign", "use_bias": False}
    arguments["dtype"] = f"mixed_{dtype}"
    if build == "conv":
        layer, shape = QuantConv2D(UNITS, 2, **arguments), (1, 2, 2, CHANNELS // 4)
    else:
        layer, shape = QuantDense(UNITS, **arguments), (1, CHANNELS)
    layer.build(shape)
    layer.kernel.assign((signs * MAGNITUDE).reshape(layer.kernel.shape))
    outputs = layer(np.ones(shape, "float32"))

    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    outputs = numpy(ops.cast(outputs, "float32")).reshape(UNITS)
    np.testing.assert_array_equal(outputs, low_precision(np.float32(MAGNITUDE) * sums, dtype))
    # The test can tell: rounding the sum or the scale before their product gives something else.
    rounded = low_precision(low_precision(sums, dtype) * low_precision(MAGNITUDE, dtype), dtype)
    assert (rounded != outputs).any()
    assert [variable.dtype for variable in layer.variables] == ["float32"] * len(layer.variables)


@pytest.mark.parametrize("layer_class", [QuantDense, QuantConv2D])
def test_mixed_precision_does_not_round_a_latent_kernel(layer_class):
    arguments = {"kernel_size": 1} if layer_class is QuantConv2D else {}
    layer = layer_class(1, use_bias=False, **arguments, kernel_quantizer="ste_sign", dtype="mixed_float16")
    shape = (1, 1, 1, 2)
    layer.build(shape)
    layer.kernel.assign(np.full(layer.kernel.shape, -1e-12))  # -0.0 in float16, whose sign is +1
    np.testing.assert_array_equal(numpy(layer(np.ones(shape, "float32"))), np.full((1, 1, 1, 1), -2))


def test_a_real_layer_computes_in_the_policy_dtype():
    layer = QuantDense(3, dtype="mixed_float16")
    reference = keras.layers.Dense(3, dtype="mixed_float16")
    x = normal(4, 9)
    for each in (layer, reference):
        each.build(x.shape)
        each.set_weights([normal(9, 3, seed=1), normal(3, seed=2)])
    np.testing.assert_array_equal(numpy(layer(x)), numpy(reference(x)))
