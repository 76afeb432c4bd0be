"""MultiBranchAveragePooling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_checks import assert_close, check_layer, few_examples, normal, np_branches, numpy, randomize

from keras_binaryvit.layers import MultiBranchAveragePooling

windows = st.lists(
    st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])), min_size=1, max_size=3, unique=True
)


@few_examples
@given(st.tuples(*[st.integers(1, 6)] * 4), windows)
def test_is_a_keras_layer(shape, windows):
    check_layer(MultiBranchAveragePooling(windows), shape)


@few_examples
@given(st.tuples(*[st.integers(1, 6)] * 4), windows)
def test_values(shape, windows):
    layer, x = MultiBranchAveragePooling(windows), normal(*shape)
    assert not numpy(layer(x)).any()  # the scales start at 0
    randomize(layer)
    assert_close(numpy(layer(x)), np_branches(layer, x))


def test_windows_of_the_paper():
    layer, x = MultiBranchAveragePooling(), normal(2, 6, 7, 3)
    layer.build(x.shape)
    randomize(layer)
    assert layer.windows == ((3, 1), (1, 3), (5, 1), (1, 5))
    assert_close(numpy(layer(x)), np_branches(layer, x))


@pytest.mark.parametrize(
    "window, rows, columns",
    [
        ((3, 1), [2 / 3, 1, 1, 1, 2 / 3], [1] * 6),
        ((1, 3), [1] * 5, [2 / 3, 1, 1, 1, 1, 2 / 3]),
        ((5, 1), [0.6, 0.8, 1, 0.8, 0.6], [1] * 6),
        ((1, 5), [1] * 5, [0.6, 0.8, 1, 1, 0.8, 0.6]),
    ],
)
def test_zeros_around_the_map_count(window, rows, columns):
    layer = MultiBranchAveragePooling([window])
    layer.build((1, 5, 6, 2))
    layer.affines[0].scale.assign([1.0, -2.0])
    outputs = numpy(layer(np.ones((1, 5, 6, 2), "float32")))
    np.testing.assert_allclose(outputs[0], np.outer(rows, columns)[..., None] * [1, -2], rtol=1e-6)


@pytest.mark.parametrize("window", [(2, 1), (1, 0), (-1, 3), (1.0, 3), (3,), (1, 3, 1), "31"])
def test_bad_windows(window):
    with pytest.raises(ValueError, match="odd positive integers") as error:
        MultiBranchAveragePooling([(3, 3), window])
    assert repr(window) in str(error.value)
