"""Shift and RPReLU."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from layer_checks import check_layer, few_examples, float64, normal, np_rprelu, numpy, randomize

from keras_binaryvit.layers import RPReLU, Shift

shapes = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)


@few_examples
@given(shapes)
def test_shift_is_a_keras_layer(shape):
    check_layer(Shift(name="s"), shape)


@few_examples
@given(shapes, st.floats(-1, 1))
def test_rprelu_is_a_keras_layer(shape, slope):
    check_layer(RPReLU(slope), shape)


def test_shift_adds_its_channel():
    layer, x = Shift(), normal(2, 3, 4)
    np.testing.assert_array_equal(numpy(layer(x)), x)  # the shift starts at 0
    randomize(layer)
    np.testing.assert_allclose(numpy(layer(x)), x + float64(layer.shift), rtol=1e-6)


def test_rprelu():
    layer, x = RPReLU(), normal(2, 3, 3, 4)
    np.testing.assert_array_equal(numpy(layer(x)), np.where(x > 0, x, 0.25 * x))
    np.testing.assert_array_equal(numpy(RPReLU(0.5)(x)), np.where(x > 0, x, 0.5 * x))
    randomize(layer)
    np.testing.assert_allclose(numpy(layer(x)), np_rprelu(layer, x), rtol=1e-5, atol=1e-6)


def test_rprelu_of_known_values():
    layer = RPReLU()
    layer.build((None, 2))
    layer.set_weights([np.array([1.0, -1.0]), np.array([0.5, -2.0]), np.array([10.0, 20.0])])
    outputs = numpy(layer(np.array([[3.0, 3.0], [1.0, -1.0], [-1.0, -3.0]], "float32")))
    np.testing.assert_array_equal(outputs, [[12, 24], [10, 20], [9, 24]])
