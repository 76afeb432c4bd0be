"""Quantisers against Larq itself, the recordings of the authors' code, and their own promises."""

import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
from gradients import layer_gradients, value_and_gradient
from keras import ops
from larq_recording import INPUTS, QUANTIZERS, UPSTREAM, recording, run_python
from requirements import needs_larq

from keras_binaryvit import quantizers
from keras_binaryvit.layers.quantized import QuantDense

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
starts_tensorflow = pytest.mark.skipif(not ON_TENSORFLOW, reason="starts a TensorFlow process whatever the backend")

EVERY_QUANTIZER = [
    quantizers.SteSign(),
    quantizers.SteSign(clip_value=None),
    quantizers.ApproxSign(),
    quantizers.SwishSign(beta=3.0),
    quantizers.SteHeaviside(clip_value=0.5),
    quantizers.SteTern(threshold_value=0.1, clip_value=None),
    quantizers.SteTern(ternary_weight_networks=True),
    quantizers.MagnitudeAwareSign(clip_value=0.5),
    quantizers.ScaledSign(),
    quantizers.ScaledSign(centered=True),
    quantizers.DoReFa(k_bit=3, mode="weights"),
    quantizers.NoOp(precision=1),
]
# Name: what it stands for.
NAMES = {
    "ste_sign": "SteSign(clip_value=1.0)",
    "SteSign": "SteSign(clip_value=1.0)",
    "approx_sign": "ApproxSign()",
    "ApproxSign": "ApproxSign()",
    "swish_sign": "SwishSign(beta=5.0)",
    "SwishSign": "SwishSign(beta=5.0)",
    "ste_heaviside": "SteHeaviside(clip_value=1.0)",
    "SteHeaviside": "SteHeaviside(clip_value=1.0)",
    "ste_tern": "SteTern(threshold_value=0.05, ternary_weight_networks=False, clip_value=1.0)",
    "SteTern": "SteTern(threshold_value=0.05, ternary_weight_networks=False, clip_value=1.0)",
    "magnitude_aware_sign": "MagnitudeAwareSign(clip_value=1.0)",
    "MagnitudeAwareSign": "MagnitudeAwareSign(clip_value=1.0)",
    "scaled_sign": "ScaledSign(centered=False)",
    "ScaledSign": "ScaledSign(centered=False)",
    "centered_scaled_sign": "ScaledSign(centered=True)",
    "dorefa_quantizer": "DoReFa(k_bit=2, mode='activations')",
    "DoReFa": "DoReFa(k_bit=2, mode='activations')",
    "DoReFaQuantizer": "DoReFa(k_bit=2, mode='activations')",
}


def case_name(case):
    name, arguments, inputs = case
    return "-".join([name, *(f"{key}={value}" for key, value in arguments.items()), inputs])


def kernel(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.fixture(scope="module")
def golden():
    """What the authors' code computes; arrays as in their layout (NCHW, kernels with the outputs first)."""
    with np.load(Path(__file__).parent / "golden" / "quantizers.npz") as arrays:
        return dict(arrays)


def assert_close(actual, expected, share):
    """Compares within `share` of the largest expected magnitude."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=share * np.abs(expected).max())


# --- Larq ---


@needs_larq
@pytest.mark.parametrize("index", range(len(QUANTIZERS)), ids=[case_name(case) for case in QUANTIZERS])
def test_equals_larq(index):
    name, arguments, inputs = QUANTIZERS[index]
    larq = recording()
    x, upstream = INPUTS[inputs], UPSTREAM[inputs]
    value, (gradient,) = value_and_gradient(getattr(quantizers, name)(**arguments), x, upstream=upstream)
    expected, expected_gradient = larq[f"quantizer{index}"], larq[f"quantizer{index}_gradient"]
    assert value.dtype == "float32" and value.shape == x.shape
    if name == "MagnitudeAwareSign":  # a mean, whose additions each library orders as it likes
        np.testing.assert_array_equal(np.sign(value), np.sign(expected))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    else:
        np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("quantizer", "levels"),
    [
        (quantizers.SteSign(), {-1, 1}),
        (quantizers.ApproxSign(), {-1, 1}),
        (quantizers.SwishSign(), {-1, 1}),
        (quantizers.SteHeaviside(), {0, 1}),
        (quantizers.SteTern(), {-1, 0, 1}),
        (quantizers.DoReFa(1), {0, 1}),
        (quantizers.DoReFa(2), {np.float32(level / 3) for level in range(4)}),
    ],
    ids=repr,
)
def test_has_exactly_its_levels(quantizer, levels):
    assert set(ops.convert_to_numpy(quantizer(INPUTS["grid"])).tolist()) == {float(level) for level in levels}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("quantizer", EVERY_QUANTIZER, ids=repr)
def test_keeps_a_low_precision_dtype(quantizer, dtype):
    x = ops.cast(INPUTS["matrix"], dtype)
    assert keras.backend.standardize_dtype(quantizer(x).dtype) == dtype


# --- The authors' code ---


def test_activation_sign_equals_the_authors(golden):
    x = golden["binary/x"]
    value, (gradient,) = value_and_gradient(quantizers.ApproxSign(), x)
    zero = x == 0
    normal = np.abs(x) >= np.finfo("float32").tiny  # JAX reads smaller values as 0
    assert zero.sum() == 2 and (~zero & ~normal).sum() == 2
    np.testing.assert_array_equal(value[zero], 1)  # theirs is 0
    np.testing.assert_array_equal(value[normal], golden["binary/y"][normal])
    assert_close(gradient, golden["binary/grad_x_ones"], 1e-6)
    upstream = golden["binary/grad_output_random"]
    _, (gradient,) = value_and_gradient(quantizers.ApproxSign(), x, upstream=upstream)
    assert_close(gradient, golden["binary/grad_x_random"], 1e-6)


@pytest.mark.parametrize(
    ("name", "quantizer", "axes"),
    [
        ("linear", quantizers.ScaledSign(centered=True), (1, 0)),
        ("conv", quantizers.ScaledSign(), (2, 3, 1, 0)),
    ],
)
def test_kernel_sign_equals_the_authors(golden, name, quantizer, axes):
    arrays = ("weight", "ste_G", "effective_weight", "ste_grad_weight")
    weight, upstream, effective, expected = (golden[f"{name}/{array}"].transpose(axes) for array in arrays)
    value, (gradient,) = value_and_gradient(quantizer, weight, upstream=upstream)
    zero = effective == 0  # their sign(0), where ours is +1
    assert zero.any() and (value[zero] > 0).all()
    assert_close(value[~zero], effective[~zero], 1e-6)
    assert_close(gradient, expected, 1e-5)


@pytest.mark.parametrize("upstream", ["ones", "random"])
@pytest.mark.parametrize("name", ["bit_uniform", "bit_softmax", "bit_edges"])
def test_elastic_binarizer_equals_the_authors(golden, name, upstream):
    arrays = {key.removeprefix(f"{name}/"): array for key, array in golden.items() if key.startswith(f"{name}/")}
    p = arrays["p"]
    layer = quantizers.ElasticBinarizer(initial_clip=float(golden["bit_clip"]))
    layer.build(p.shape)
    gradient = np.ones_like(p) if upstream == "ones" else arrays["grad_output_random"]
    value, (to_p,), to_weights = layer_gradients(layer, p, upstream=gradient)
    assert_close(value, arrays["y"], 1e-6)
    assert_close(to_p, arrays[f"grad_p_{upstream}"], 1e-6)
    # The gradient to the clip is a sum with cancellation: compared with float64, relative to the sum of magnitudes.
    expected, margin = arrays[f"grad_clip_{upstream}_float64"], 1e-6 * np.abs(gradient).sum()
    np.testing.assert_allclose(to_weights[layer.clip.path], expected, rtol=1e-4, atol=margin)


# --- The rest of the maths ---


@pytest.mark.parametrize("centered", [False, True])
def test_scaled_sign_in_numpy(centered):
    w = kernel(3, 2, 4, 5) * 0.9 + 0.3
    upstream = kernel(3, 2, 4, 5, seed=1)
    scale = np.abs(w).mean((0, 1, 2))
    used = w - w.mean((0, 1, 2)) if centered else w
    expected = np.where(np.abs(used) <= 1, upstream, 0)
    if centered:
        expected = expected - expected.mean((0, 1, 2))
    value, (gradient,) = value_and_gradient(quantizers.ScaledSign(centered), w, upstream=upstream)
    np.testing.assert_allclose(value, np.where(used >= 0, scale, -scale), rtol=1e-6)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_scaled_sign_of_a_zero_unit_still_learns():
    w = np.zeros((6, 3), "float32")
    upstream = kernel(6, 3)
    value, (gradient,) = value_and_gradient(quantizers.ScaledSign(), w, upstream=upstream)
    assert np.abs(value).max() < 1e-15
    np.testing.assert_allclose(gradient, upstream, rtol=1e-6)


@pytest.mark.parametrize("quantizer", EVERY_QUANTIZER, ids=repr)
def test_decomposes_into_integers_and_a_scale(quantizer):
    w = ops.convert_to_tensor(kernel(3, 3, 4, 6))
    values, scale = quantizer.decompose(w)
    if scale is not None:
        assert tuple(scale.shape) == (6,)
        assert set(np.unique(ops.convert_to_numpy(values))) == {-1.0, 1.0}
    product = ops.convert_to_numpy(values) * (1 if scale is None else ops.convert_to_numpy(scale))
    np.testing.assert_array_equal(product, ops.convert_to_numpy(quantizer(w)))


@pytest.mark.parametrize("clip", [1e-6, 0.0, -0.5, -1000.0])
def test_elastic_binarizer_recovers_from_a_clip_below_its_smallest(clip):
    layer = quantizers.ElasticBinarizer()
    layer.build((2, 3))
    layer.clip.assign(clip)
    p = np.array([[0, 0.2, 0.9], [4e-6, 2e-5, 1]], "float32")
    value, _, to_weights = layer_gradients(layer, p)
    np.testing.assert_allclose(value, np.float32(1e-5) * np.array([[0, 1, 1], [0, 1, 1]]), rtol=1e-6)
    np.testing.assert_allclose(to_weights[layer.clip.path], 4 - 0.4, rtol=1e-5)  # four above 1, one rounded down by 0.4


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_elastic_binarizer_in_mixed_precision(policy):
    layer = quantizers.ElasticBinarizer(initial_clip=0.01, dtype=policy)
    p = np.random.default_rng(0).uniform(0, 0.02, size=(4, 50)).astype("float32")
    outputs = layer(p)
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
    assert layer.clip.dtype == "float32"
    bits, clip = layer.decompose(ops.cast(p, layer.compute_dtype))
    assert keras.backend.standardize_dtype(bits.dtype) == "float32"
    np.testing.assert_array_equal(
        ops.convert_to_numpy(ops.cast(outputs, "float32")),
        ops.convert_to_numpy(ops.cast(ops.cast(bits * clip, layer.compute_dtype), "float32")),
    )


@pytest.mark.parametrize("clip", [0, -1.0, float("nan")])
def test_elastic_binarizer_refuses_a_clip(clip):
    with pytest.raises(ValueError, match="initial_clip"):
        quantizers.ElasticBinarizer(initial_clip=clip)


def test_elastic_binarizer_config():
    layer = quantizers.ElasticBinarizer(initial_clip=0.25, name="bits")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.get_config() == layer.get_config() and copy.initial_clip == 0.25
    assert copy.compute_output_shape((2, 3)) == (2, 3)


# --- get, serialize ---


@pytest.mark.parametrize("name", NAMES)
def test_get_a_name(name):
    assert repr(quantizers.get(name)) == NAMES[name]


@pytest.mark.parametrize("quantizer", EVERY_QUANTIZER, ids=repr)
def test_get_what_serialize_wrote(quantizer):
    copy = quantizers.get(quantizers.serialize(quantizer))
    assert type(copy) is type(quantizer) and copy is not quantizer
    assert copy.get_config() == quantizer.get_config()
    assert copy.precision == quantizer.precision
    assert repr(copy) == repr(quantizer) and repr(quantizer).startswith(f"{type(quantizer).__name__}(")
    x = ops.convert_to_tensor(INPUTS["maps"])
    np.testing.assert_array_equal(ops.convert_to_numpy(copy(x)), ops.convert_to_numpy(quantizer(x)))


def test_get_passes_on():
    quantizer = quantizers.SteSign(0.5)
    assert quantizers.get(quantizer) is quantizer
    assert quantizers.get(ops.sign) is ops.sign
    assert quantizers.get(None) is None and quantizers.serialize(None) is None


def test_get_an_unknown_name():
    with pytest.raises(ValueError, match="'ste_sgin'") as error:
        quantizers.get("ste_sgin")
    for name in ("ste_sign", "approx_sign", "scaled_sign", "centered_scaled_sign", "dorefa_quantizer", "no_op"):
        assert name in str(error.value)


@pytest.mark.parametrize("name", ["no_op", "NoOp", "NoOpQuantizer"])
def test_get_a_name_that_needs_arguments(name):
    with pytest.raises(ValueError, match=f"'{name}' needs arguments.*precision"):
        quantizers.get(name)


@pytest.mark.parametrize("identifier", [1, 0.5, ["ste_sign"], ()])
def test_get_a_wrong_type(identifier):
    with pytest.raises(ValueError, match=type(identifier).__name__):
        quantizers.get(identifier)


def test_dorefa_mode():
    with pytest.raises(ValueError, match="mode='weight'"):
        quantizers.DoReFa(mode="weight")


def test_the_base_class_asks_for_a_call():
    class Halving(quantizers.Quantizer):
        pass

    with pytest.raises(NotImplementedError, match="Halving"):
        Halving()(1.0)


# --- Larq's own objects ---


@pytest.mark.skipif(ON_TENSORFLOW, reason="about the other backends")
@pytest.mark.parametrize("name", ["larq.approx_sign", "larq.quantizers.SteSign"])
def test_larq_is_refused_on_other_backends(name):
    with pytest.raises(RuntimeError, match=keras.backend.backend()):
        quantizers.get(name)


WITHOUT_THE_FLAG = """
    from keras_binaryvit import quantizers
    try:
        quantizers.get("larq.approx_sign")
    except RuntimeError as error:
        print(error)
"""
TRAINS = """
    import sys
    import keras, larq, numpy as np
    from keras_binaryvit import quantizers
    from keras_binaryvit.layers.quantized import QuantDense

    named, given = quantizers.get("larq.approx_sign"), larq.quantizers.SteSign(clip_value=0.5)
    assert type(named.quantizer) is larq.quantizers.ApproxSign and named.precision == 1
    wrapped = quantizers.get(given)
    assert wrapped.quantizer is given and quantizers.get(wrapped) is wrapped
    copy = quantizers.get(quantizers.serialize(wrapped))
    assert type(copy.quantizer) is larq.quantizers.SteSign and copy.quantizer.clip_value == 0.5
    try:
        quantizers.get("larq.no_such_sign")
    except ValueError as error:
        assert "no_such_sign" in str(error)
    else:
        raise AssertionError("no_such_sign was found")

    keras.utils.set_random_seed(0)
    def model(input_quantizer, kernel_quantizer):
        inputs = keras.Input((6,))
        layer = QuantDense(3, input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, name="binary")
        model = keras.Model(inputs, layer(inputs))
        model.compile("sgd", "mse")
        return model

    x, y = (np.random.default_rng(0).normal(size=(8, n)).astype("float32") for n in (6, 3))
    theirs = model("larq.approx_sign", given)
    ours = model("approx_sign", quantizers.SteSign(clip_value=0.5))
    assert theirs.get_layer("binary").is_binary
    ours.set_weights(theirs.get_weights())
    before = [w.copy() for w in theirs.get_weights()]
    theirs.train_on_batch(x, y)
    ours.train_on_batch(x, y)
    for old, new, expected in zip(before, theirs.get_weights(), ours.get_weights()):
        assert (old != new).any()
        np.testing.assert_allclose(new, expected, rtol=1e-6, atol=1e-7)
    theirs.save(sys.argv[1] + "/model.keras")
    np.savez(sys.argv[1] + "/outputs.npz", x=x, y=theirs.predict(x, verbose=0))
"""
LOADS = """
    import sys
    import keras, numpy as np
    import keras_binaryvit

    model = keras.models.load_model(sys.argv[1] + "/model.keras")
    arrays = np.load(sys.argv[1] + "/outputs.npz")
    np.testing.assert_array_equal(model.predict(arrays["x"], verbose=0), arrays["y"])
    layer = model.get_layer("binary")
    for quantizer, name in ((layer.input_quantizer, "ApproxSign"), (layer.kernel_quantizer, "SteSign")):
        assert type(quantizer.quantizer).__module__ == "larq.quantizers"
        assert type(quantizer.quantizer).__name__ == name, quantizer
    assert layer.kernel_quantizer.quantizer.clip_value == 0.5
"""


@starts_tensorflow
def test_larq_without_its_flag():
    pytest.importorskip("tensorflow")
    message = run_python("-c", textwrap.dedent(WITHOUT_THE_FLAG), legacy=False)
    assert "TF_USE_LEGACY_KERAS=1" in message and "pip install" in message


@starts_tensorflow
@needs_larq
def test_larq_objects_train_and_load(tmp_path):
    run_python("-c", textwrap.dedent(TRAINS), str(tmp_path))
    run_python("-c", textwrap.dedent(LOADS), str(tmp_path))


def test_a_function_is_a_kernel_quantizer():
    layer = QuantDense(3, kernel_quantizer=ops.sign, use_bias=False)
    x = kernel(2, 4)
    outputs = ops.convert_to_numpy(layer(x))
    assert not layer.is_binary
    np.testing.assert_allclose(outputs, x @ np.sign(ops.convert_to_numpy(layer.kernel)), rtol=1e-5)
