"""The per-channel functions and their hand-written gradients."""

import keras
import numpy as np
import pytest
from gradients import value_and_gradient
from keras import ops
from layer_checks import assert_close, normal, numeric_gradients, numpy

from keras_binaryvit.layers import channelwise


def np_rprelu(x, input_shift, slope, output_shift):
    shifted = x - input_shift
    return np.where(shifted > 0, shifted, shifted * slope) + output_shift


FUNCTIONS = {
    "add": (lambda x, shift: x + shift, 1),
    "affine": (lambda x, scale, shift: x * scale + shift, 2),
    "rprelu": (np_rprelu, 3),
}


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (2, 3, 2, 4)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients(name, shape):
    expected_function, parameters = FUNCTIONS[name]
    arrays = [normal(*shape), *(normal(shape[-1], seed=seed) for seed in range(1, 1 + parameters))]
    upstream = normal(*shape, seed=9)
    value, gradients = value_and_gradient(getattr(channelwise, name), *arrays, upstream=upstream)
    assert_close(value, expected_function(*arrays), 1e-6)
    expected = numeric_gradients(expected_function, *arrays, upstream=upstream)
    for actual, gradient in zip(gradients, expected, strict=True):
        assert_close(actual, gradient, 2e-6)


def test_rprelu_at_the_kink_has_the_slope():
    _, (to_x, to_input_shift, to_slope, to_output_shift) = value_and_gradient(
        channelwise.rprelu, normal(1, 2), normal(1, 2)[0], np.float32([0.25, -3]), np.zeros(2, "float32")
    )
    np.testing.assert_array_equal(to_x, [[0.25, -3]])
    np.testing.assert_array_equal(to_input_shift, [-0.25, 3])
    np.testing.assert_array_equal(to_slope, [0, 0])
    np.testing.assert_array_equal(to_output_shift, [1, 1])


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (2, 3, 2, 4)])
def test_normalize_counts_the_ways_through_mean_and_deviation(shape):
    axes = tuple(range(len(shape) - 1))
    arrays = 2 * normal(*shape) + 1, normal(shape[-1], seed=1), normal(shape[-1], seed=2)
    upstream = normal(*shape, seed=9)

    def normalized(x, gamma, beta):
        return (x - x.mean(axis=axes)) / np.sqrt(x.var(axis=axes) + 0.1) * gamma + beta

    mean, deviation = arrays[0].mean(axis=axes), np.sqrt(arrays[0].var(axis=axes) + 0.1)
    value, (to_x, to_mean, to_deviation, *to_parameters) = value_and_gradient(
        channelwise.normalize, arrays[0], mean, deviation, *arrays[1:], upstream=upstream
    )
    assert_close(value, normalized(*arrays))
    for actual, gradient in zip(
        (to_x, *to_parameters), numeric_gradients(normalized, *arrays, upstream=upstream), strict=True
    ):
        assert_close(actual, gradient)
    assert not to_mean.any() and not to_deviation.any()


@pytest.mark.parametrize("shape", [(7, 3), (2, 5, 3), (2, 3, 4, 5), (1, 1)])
def test_channel_sum(shape):
    x = normal(*shape)
    assert_close(numpy(channelwise.channel_sum(x)), x.sum(axis=tuple(range(len(shape) - 1)), dtype="float64"), 1e-6)


def test_channel_sum_is_accurate():
    x = normal(8, 64, 64, 3) + 1
    expected = x.sum(axis=(0, 1, 2), dtype="float64")
    np.testing.assert_allclose(numpy(channelwise.channel_sum(x)), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(5043, 2), (3, 41, 41, 2)])
def test_sums_of_half_precision_are_exact(dtype, shape):
    ones = ops.ones(shape, dtype)
    total = channelwise.channel_sum(ones)
    assert keras.backend.standardize_dtype(total.dtype) == "float32"
    np.testing.assert_array_equal(numpy(total), [5043, 5043])


def test_parameters_may_be_variables():
    variable = keras.Variable(np.float32([1, 2]))
    x = normal(3, 2)
    np.testing.assert_allclose(numpy(channelwise.add(x, variable)), x + [1, 2], rtol=1e-6)
