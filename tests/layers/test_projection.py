"""BinaryProjection."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_checks import assert_close, check_layer, few_examples, float64, normal, np_projection, numpy, randomize

from keras_binaryvit.layers import BinaryProjection


@few_examples
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.sampled_from([(4, 4), (2, 6), (6, 2), (1, 5), (5, 1)]))
def test_is_a_keras_layer(leading, sizes):
    channels, units = sizes
    check_layer(BinaryProjection(units), (*leading, channels), signs=True)


@pytest.mark.parametrize("quantizers", [("ste_sign", "scaled_sign"), (None, None)])
def test_other_quantizers(quantizers):
    check_layer(BinaryProjection(4, *quantizers), (2, 4), signs=quantizers[0] is not None)


@pytest.mark.parametrize("channels, units", [(8, 8), (4, 12), (12, 4), (1, 3), (3, 1)])
def test_values(channels, units):
    layer, x = BinaryProjection(units), normal(2, 3, 3, channels)
    layer.build(x.shape)
    randomize(layer)
    assert_close(numpy(layer(x)), np_projection(layer, x))


@pytest.mark.parametrize(
    "channels, units, expected",
    [
        (4, 4, [1, 10, 100, 1000]),
        (4, 8, [1, 10, 100, 1000, 1, 10, 100, 1000]),
        (4, 2, [5.5, 550]),
        (4, 1, [277.75]),
    ],
)
def test_shortcut(channels, units, expected):
    layer = BinaryProjection(units)
    layer.build((1, channels))
    layer.norm.gamma.assign(np.zeros(units))  # nothing but the shortcut is left
    np.testing.assert_allclose(numpy(layer(10.0 ** np.arange(4, dtype="float32")[None])), [expected], rtol=1e-6)


def test_starts_as_the_authors_code_does():
    layer = BinaryProjection(64)
    layer.build((None, 256))
    kernel = float64(layer.dense.kernel)
    assert 0.97 / 16 < np.abs(kernel).max() <= 1 / 16  # U(+-1 / sqrt(fan_in))
    np.testing.assert_allclose(kernel.std(), 3**-0.5 / 16, rtol=0.02)
    assert not layer.dense.use_bias and layer.dense.is_binary


@pytest.mark.parametrize("channels, units", [(4, 6), (6, 4), (3, 2)])
def test_units_neither_multiple_nor_divisor(channels, units):
    with pytest.raises(ValueError, match=f"units={units}, channels={channels}"):
        BinaryProjection(units)(normal(1, channels))


@pytest.mark.parametrize("units", [0, -4, 4.0])
def test_bad_units(units):
    with pytest.raises(ValueError, match=f"units={units}"):
        BinaryProjection(units)


def test_unknown_quantizer():
    with pytest.raises(ValueError, match="'no_such_sign'"):
        BinaryProjection(4, input_quantizer="no_such_sign")
