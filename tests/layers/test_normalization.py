"""BatchNorm."""

import keras
import numpy as np
import pytest
from gradients import layer_gradients
from hypothesis import given
from hypothesis import strategies as st
from layer_checks import (
    assert_close,
    check_layer,
    few_examples,
    float64,
    normal,
    np_norm,
    numeric_gradients,
    numpy,
    randomize,
)

from keras_binaryvit.layers import BatchNorm

shapes = [(6, 3), (2, 5, 3), (2, 3, 4, 5)]


@few_examples
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple))
def test_is_a_keras_layer(shape):
    check_layer(BatchNorm(), shape)


def test_constants_of_the_authors_code():
    layer = BatchNorm()
    assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
    assert isinstance(layer, keras.layers.BatchNormalization)
    config = BatchNorm(momentum=0.5, epsilon=0.1).get_config()
    assert (config["momentum"], config["epsilon"]) == (0.5, 0.1)


def statistics(x):
    axes = tuple(range(x.ndim - 1))
    return x.mean(axis=axes, dtype="float64"), x.var(axis=axes, dtype="float64")


@pytest.mark.parametrize("shape", shapes)
@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_training(shape, momentum):
    layer, x = BatchNorm(momentum), 3 * normal(*shape) + 5
    layer.build(shape)
    randomize(layer)
    old_mean, old_variance = float64(layer.moving_mean), float64(layer.moving_variance)
    mean, variance = statistics(x)
    expected = (x - mean) / np.sqrt(variance + 1e-5) * float64(layer.gamma) + float64(layer.beta)
    assert_close(numpy(layer(x, training=True)), expected)
    n = x.size // x.shape[-1]
    assert_close(numpy(layer.moving_mean), momentum * old_mean + (1 - momentum) * mean, 1e-6)
    unbiased = variance * n / (n - 1)
    assert_close(numpy(layer.moving_variance), momentum * old_variance + (1 - momentum) * unbiased, 1e-6)


def test_variance_of_values_far_from_zero():
    layer, x = BatchNorm(), normal(4, 6, 6, 3) + 1000
    outputs = numpy(layer(x, training=True))
    mean, variance = statistics(x)
    assert_close(outputs, (x - mean) / np.sqrt(variance + 1e-5), 1e-3)
    assert_close(numpy(layer.moving_variance), 0.9 + 0.1 * variance * 144 / 143)


def test_one_position_gives_finite_statistics():
    layer = BatchNorm()
    np.testing.assert_array_equal(numpy(layer(normal(1, 3), training=True)), np.zeros((1, 3)))
    np.testing.assert_allclose(numpy(layer.moving_variance), 0.9)


@pytest.mark.parametrize("training, trainable", [(False, True), (None, True), (True, False)])
def test_inference(training, trainable):
    layer, x = BatchNorm(trainable=trainable), normal(2, 3, 4, 5)
    layer.build(x.shape)
    randomize(layer)
    weights = layer.get_weights()
    assert_close(numpy(layer(x, training=training)), np_norm(layer, x))
    for before, after in zip(weights, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("compiled", [False, True])
def test_rounds_as_ieee_754_says(compiled):
    """A square root and a division, which all processors round alike, also where the compiler could use rsqrt."""
    layer = BatchNorm(epsilon=2.0**-10)
    inputs = keras.Input((16,))
    model = keras.Model(inputs, layer(inputs))
    rng = np.random.default_rng(0)
    gamma, variance = rng.uniform(0.5, 1.5, (2, 16)).astype("float32")
    variance[:8] = 4 - 2.0**-10
    layer.set_weights([gamma, np.zeros(16), np.zeros(16), variance])
    x = rng.choice([-1.0, 1.0, 2.0], (8, 16)).astype("float32")
    actual = model.predict(x, verbose=0) if compiled else numpy(model(x, training=False))
    np.testing.assert_array_equal(actual, x * (gamma / np.sqrt(variance + np.float32(2.0**-10))))


@pytest.mark.parametrize("shape", shapes)
def test_gradients(shape):
    layer, x, upstream = BatchNorm(), 2 * normal(*shape) + 1, normal(*shape, seed=1)
    layer.build(shape)
    randomize(layer)

    def normalized(x, gamma, beta):
        mean, variance = statistics(x)
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    arrays = x, float64(layer.gamma), float64(layer.beta)
    expected = numeric_gradients(normalized, *arrays, upstream=upstream)
    _, (to_x,), to_weights = layer_gradients(layer, x, upstream=upstream, training=True)
    for actual, gradient in zip((to_x, *to_weights.values()), expected, strict=True):
        assert_close(actual, gradient, 1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_statistics_stay_in_float32(dtype):
    layer, x = BatchNorm(dtype=f"mixed_{dtype}"), np.ones((1, 64, 64, 2), "float32")
    x[:, ::2] = 2
    layer(x, training=True)
    np.testing.assert_allclose(numpy(layer.moving_mean), 0.15, rtol=1e-6)
    np.testing.assert_allclose(numpy(layer.moving_variance), 0.9 + 0.025 * 4096 / 4095, rtol=1e-6)


@pytest.mark.parametrize("policy", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("training", [False, True])
def test_policies(training, policy):
    """The statistics of all but float64 are computed in float32."""
    if policy == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is told to")
    layer, reference = BatchNorm(dtype=policy), BatchNorm()
    x = normal(4, 5, 6, 8)
    x = numpy(keras.ops.cast(keras.ops.cast(x, policy), "float32"))
    expected = numpy(reference(x, training=training))
    outputs = layer(x, training=training)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy
    tolerance = {"float64": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[policy]
    np.testing.assert_allclose(float64(outputs), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(float64(layer.moving_variance), numpy(reference.moving_variance), rtol=tolerance)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="JAX has no float64 unless it is told to, and on PyTorch Keras' maximum is float32",
)
def test_float64_is_that_precise():
    layer, x = BatchNorm(dtype="float64"), np.random.default_rng(0).normal(size=(4, 5, 6, 8))
    outputs = numpy(layer(x, training=True))
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(outputs, (x - mean) / np.sqrt(variance + 1e-5), rtol=1e-12, atol=1e-12)
