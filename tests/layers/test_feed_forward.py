"""BinaryFeedForward."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_checks import assert_close, check_layer, few_examples, normal, np_feed_forward, numpy, randomize

from keras_binaryvit.layers import BinaryFeedForward


@few_examples
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple), st.integers(1, 4))
def test_is_a_keras_layer(shape, expansion):
    check_layer(BinaryFeedForward(expansion), shape, signs=True)


@pytest.mark.parametrize("expansion", [1, 2, 4])
def test_values(expansion):
    layer, x = BinaryFeedForward(expansion), normal(2, 3, 3, 6)
    layer.build(x.shape)
    randomize(layer)
    assert layer.expand.units == 6 * expansion
    assert_close(numpy(layer(x)), np_feed_forward(layer, x))


def test_arguments_reach_both_projections():
    layer = BinaryFeedForward(2, "ste_sign", "magnitude_aware_sign")
    layer.build((None, 4))
    for projection in (layer.expand, layer.reduce):
        assert type(projection.dense.input_quantizer).__name__ == "SteSign"
        assert type(projection.dense.kernel_quantizer).__name__ == "MagnitudeAwareSign"


@pytest.mark.parametrize("expansion", [0, -1, 2.0, "4", None])
def test_bad_expansion(expansion):
    with pytest.raises(ValueError, match=f"expansion={expansion!r}"):
        BinaryFeedForward(expansion)
