"""ResidualAffine."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from layer_checks import check_layer, few_examples, normal, np_affine, numpy, randomize

from keras_binaryvit.layers import ResidualAffine


@few_examples
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple), st.floats(-2, 2))
def test_is_a_keras_layer(shape, scale):
    check_layer(ResidualAffine(scale), shape)


def test_scales_and_shifts_its_channel():
    layer, x = ResidualAffine(), normal(2, 3, 3, 4)
    np.testing.assert_allclose(numpy(layer(x)), 0.1 * x, rtol=1e-6)
    np.testing.assert_array_equal(numpy(ResidualAffine(0.0)(x)), np.zeros_like(x))
    randomize(layer)
    np.testing.assert_allclose(numpy(layer(x)), np_affine(layer, x), rtol=1e-5, atol=1e-6)
