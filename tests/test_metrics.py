"""FlipRatio against Larq's and against NumPy."""

import keras
import numpy as np
import pytest
from larq_recording import FLIPS, recording
from requirements import needs_larq

from keras_binaryvit.metrics import FlipRatio


def results(metric, sequence):
    values = []
    for value in sequence:
        metric.update_state(value)
        values.append(float(metric.result()))
    return values


def test_the_example():
    assert results(FlipRatio(), [(1, 1), (2, 2), (1, 2)]) == [0, 1, 0.75]


@needs_larq
@pytest.mark.parametrize("index", range(len(FLIPS)))
def test_equals_larq(index):
    np.testing.assert_allclose(results(FlipRatio(), FLIPS[index]), recording()[f"flips{index}"], atol=1e-6)


@pytest.mark.parametrize("index", range(len(FLIPS)))
def test_in_numpy(index):
    sequence = FLIPS[index]
    flips = [np.mean(new != old) for old, new in zip(sequence[:-1], sequence[1:], strict=True)]
    expected = [0, *(np.mean(flips[:count]) for count in range(1, len(flips) + 1))]
    np.testing.assert_allclose(results(FlipRatio(), sequence), expected, atol=1e-6)


def test_reset_forgets_the_mean_but_not_the_values():
    metric = FlipRatio()
    assert results(metric, [(1, 1), (2, 1)]) == [0, 0.5]
    metric.reset_state()
    assert float(metric.result()) == 0
    assert [float(variable) for variable in (metric.total, metric.count)] == [0, 0]
    np.testing.assert_array_equal(np.asarray(metric.variables[-1]), (2, 1))
    assert results(metric, [(1, 1), (1, 2)]) == [0, 0.5]  # as Larq: the first update of an epoch only counts


def test_compares_as_values_dtype():
    assert results(FlipRatio(), [(0.2, 1.0), (0.7, 2.0)]) == [0, 0.5]
    assert results(FlipRatio(values_dtype="float32"), [(0.2, 1.0), (0.7, 2.0)]) == [0, 1]


def test_follows_one_shape():
    metric = FlipRatio()
    metric.update_state(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        metric.update_state(np.ones((3, 2)))


def test_config():
    metric = FlipRatio(values_dtype="int16", name="flips")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert isinstance(copy, FlipRatio) and copy.get_config() == metric.get_config()
    assert (copy.name, copy.values_dtype) == ("flips", "int16")
    assert results(copy, [(1, 1), (2, 2), (1, 2)]) == [0, 1, 0.75]
