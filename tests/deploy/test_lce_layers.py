"""The layers of frozen models that don't just call one operation of Keras, against their definitions in NumPy."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_checks import normal, numpy

from keras_binaryvit.deploy import lce_layers

fast = settings(deadline=None, derandomize=True, database=None)


def float_sign(kernel, bias):
    layer = lce_layers.FloatSign()
    layer.build((None, None, None, len(bias)))
    for name, value in layer.constants(kernel, bias).items():
        getattr(layer, name).assign(np.reshape(value, getattr(layer, name).shape))
    return layer


def signs(kernel, bias, x):
    return numpy(float_sign(kernel, bias)(np.asarray(x, np.float32).reshape(-1, 1, 1, len(bias)))).reshape(
        -1, len(bias)
    )


# Runtimes flush what is smaller than 2^-126 to 0, and no trained weight is near these bounds.
numbers = st.floats(2.0**-60, 2.0**27, width=32) | st.floats(-(2.0**27), -(2.0**-60), width=32) | st.just(0.0)


@given(st.lists(numbers, min_size=8, max_size=8), st.lists(numbers, min_size=8, max_size=8), st.booleans())
@fast
def test_float_sign(x, bias, tie):
    x, bias = np.asarray(x, np.float32), np.asarray(bias, np.float32)
    if tie:
        x = -bias
    # The nearest value below a tie is within rounding of the threshold.
    x = np.where(np.nextafter(bias, np.float32(np.inf)) == -x, -bias, x)
    expected = np.where(x.astype(float) + bias >= 0, 1, -1)
    np.testing.assert_array_equal(signs(np.ones(8), bias, x)[0], expected)


@given(st.lists(numbers, min_size=8, max_size=8), st.sampled_from([-300.0, -1.0, -0.01, 1e-4, 1.0, 300.0]))
@fast
def test_float_sign_of_an_affine(bias, kernel):
    """Away from the threshold by more than rounding, whatever the factor's size and sign."""
    bias = np.asarray(bias)
    x = np.float32([-1, 1])[:, None] * (np.abs(bias) / abs(kernel) * 1e-3 + 1e-12) - bias / kernel
    result = kernel * x.astype(np.float32).astype(float) + bias
    clear = np.abs(result) > 1e-5 * np.abs(bias)
    actual = signs(np.full(8, kernel), bias, x)
    np.testing.assert_array_equal(actual[clear], np.where(result > 0, 1, -1)[clear])


def test_float_sign_of_a_constant():
    """A factor of 0, from a gamma of 0: the sign of the bias."""
    actual = signs(np.zeros(3), np.array([-0.5, 0.0, 0.5]), normal(4, 3))
    np.testing.assert_array_equal(actual, [[-1, 1, 1]] * 4)


def np_attention(queries, keys, values, heads, threshold):
    batch, *side, channels = queries.shape
    depth = channels // heads
    outputs = np.zeros((batch, side[0] * side[1], channels))
    q, k, v = (x.reshape(batch, -1, channels).astype(float) for x in (queries, keys, values))
    for sample in range(batch):
        for head in range(heads):
            group = slice(head * depth, (head + 1) * depth)
            scores = np.exp(q[sample, :, group] @ k[sample, :, group].T / np.sqrt(depth))
            probabilities = scores / scores.sum(axis=1, keepdims=True)
            # A clear decision: otherwise it is float32's rounding that is tested.
            assert np.all(np.abs(probabilities / threshold - 1) > 1e-5)
            outputs[sample, :, group] = 6 * (probabilities > threshold) @ v[sample, :, group]
    return outputs.reshape(queries.shape)


@pytest.mark.parametrize("reduction", [1, 2])
@pytest.mark.parametrize("depth", [4, 8, 32])  # of the factors 1 / sqrt(depth) only the first is exact
@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_attention(heads, depth, reduction):
    channels = heads * depth
    x = normal(3, 4, 6, channels, seed=heads)
    queries, keys, values = (np.sign(normal(*x.shape, seed=seed)) for seed in range(3))
    keys, values = (a[:, ::reduction, ::reduction] for a in (keys, values))
    threshold = 1.07 / (keys.shape[1] * keys.shape[2])
    layer = lce_layers.Attention(heads)
    layer.build([queries.shape, keys.shape, values.shape])
    for name, value in layer.constants(threshold).items():
        getattr(layer, name).assign(np.full(getattr(layer, name).shape, value))

    expected = np_attention(queries, keys, values, heads, threshold)
    assert 0.2 < np.mean(expected == 0) + np.mean(np.abs(expected) > 6) < 1  # neither all nor none of the keys
    batch = numpy(layer([queries, keys, values]))
    np.testing.assert_array_equal(batch, expected)
    for sample in range(3):
        one = [a[sample : sample + 1] for a in (queries, keys, values)]
        np.testing.assert_array_equal(numpy(layer(one)), expected[sample : sample + 1])


@pytest.mark.parametrize("heads", [2, 8])
def test_attention_in_a_graph(heads):
    """With a batch of one that is known, as the converter sees it, and one that isn't."""
    queries, keys, values = (np.sign(normal(1, 4, 4, 64, seed=seed)) for seed in range(3))
    expected = np_attention(queries, keys, values, heads, 0.055)
    for batch in (1, None):
        inputs = [keras.Input((4, 4, 64), batch_size=batch) for _ in range(3)]
        layer = lce_layers.Attention(heads)
        model = keras.Model(inputs, layer(inputs))
        assert model.output_shape == (batch, 4, 4, 64)
        for name, value in layer.constants(0.055).items():
            getattr(layer, name).assign(np.full(getattr(layer, name).shape, value))
        np.testing.assert_array_equal(model.predict([queries, keys, values], verbose=0), expected)


def test_attention_at_the_threshold():
    """A probability of exactly the threshold gives 0, the next larger one 6."""
    ones = np.ones((1, 2, 2, 4), np.float32)  # four keys alike: each has 1/4
    layer = lce_layers.Attention(1)
    layer.build([ones.shape] * 3)
    probability = numpy(keras.ops.softmax(np.full((1, 1, 4, 4), 2.0, np.float32))).flat[0]
    for threshold, expected in ((probability, 0), (np.nextafter(probability, np.float32(0)), 24)):
        for name, value in layer.constants(threshold).items():
            getattr(layer, name).assign(np.full(getattr(layer, name).shape, value))
        np.testing.assert_array_equal(numpy(layer([ones] * 3)), np.full(ones.shape, expected))
        np.testing.assert_array_equal(numpy(layer([np.repeat(ones, 2, 0)] * 3)), np.full((2, 2, 2, 4), expected))


@pytest.mark.parametrize("shape", [(2, 3, 4, 24), (2, 5, 24), (2, 24)])
@pytest.mark.parametrize("size", [2, 3, 8, 24])
def test_group_mean(shape, size):
    x = normal(*shape)
    expected = np.stack([x[..., j : j + size].mean(-1) for j in range(0, 24, size)], axis=-1)
    np.testing.assert_allclose(numpy(lce_layers.GroupMean(size)(x)), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 5, 6), (2, 6)])
def test_elementwise_layers(shape):
    """On maps and on other shapes, where a convolution can't do it."""
    x, kernel, bias = normal(*shape), normal(6, seed=1), normal(6, seed=2)
    affine, prelu = lce_layers.Affine(), lce_layers.PReLU()
    affine.build(shape)
    affine.kernel.assign(kernel.reshape(1, 1, 6, 1))
    affine.bias.assign(bias)
    np.testing.assert_allclose(numpy(affine(x)), kernel * x + bias, atol=1e-6)
    prelu.build(shape)
    prelu.negative_slope.assign(-kernel.reshape(prelu.negative_slope.shape))
    np.testing.assert_array_equal(numpy(prelu(x)), np.where(x > 0, x, kernel * x))
    np.testing.assert_array_equal(numpy(lce_layers.Tile(3)(x)), np.concatenate([x] * 3, axis=-1))
    np.testing.assert_allclose(numpy(lce_layers.Add()([x, x, 2 * x])), 4 * x, rtol=1e-6)
    np.testing.assert_array_equal(numpy(lce_layers.Add()([x, 2 * x])), x + 2 * x)
    np.testing.assert_array_equal(numpy(lce_layers.Sign()(np.float32([-1e-30, -0.0, 0, 1]))), [-1, 1, 1, 1])


def test_upsampling():
    x = normal(2, 3, 2, 4)
    np.testing.assert_array_equal(numpy(lce_layers.Upsampling(3)(x)), x.repeat(3, axis=1).repeat(3, axis=2))
