"""SoftTargetCrossEntropy against the recording of the authors' loss and against NumPy."""

from pathlib import Path

import keras
import numpy as np
import pytest
from gradients import value_and_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_binaryvit.training import SoftTargetCrossEntropy


def softmax(x):
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def logits(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 3, shape).astype("float32")


def test_equals_the_authors():
    with np.load(Path(__file__).parents[1] / "golden" / "loss.npz") as golden:
        loss, (gradient,) = value_and_gradient(
            lambda student: SoftTargetCrossEntropy()(golden["teacher"], student), golden["student"]
        )
        np.testing.assert_allclose(loss, golden["loss64"], rtol=1e-6)
        np.testing.assert_allclose(gradient, golden["grad_student64"], atol=1e-7)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(batch=st.integers(1, 5), classes=st.integers(1, 7), temperature=st.floats(0.5, 8))
def test_in_numpy(batch, classes, temperature):
    teacher, student = logits(batch, classes), logits(batch, classes, seed=1)
    targets = softmax(teacher / temperature).astype("float64")
    expected = -(temperature**2) * (targets * np.log(softmax(student.astype("float64") / temperature))).sum(-1).mean()
    loss, (to_teacher, to_student) = value_and_gradient(SoftTargetCrossEntropy(temperature), teacher, student)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    expected = temperature * (softmax(student / temperature) - targets) / batch
    np.testing.assert_allclose(to_student, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(to_teacher, 0)


def test_half_precision_is_computed_in_float32():
    teacher, student = logits(4, 6).astype("float16"), logits(4, 6, seed=1).astype("float16")
    loss = SoftTargetCrossEntropy()(teacher, student)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    targets, student = softmax(teacher.astype("float64")), student.astype("float64")
    expected = -(targets * np.log(softmax(student))).sum(-1).mean()
    np.testing.assert_allclose(ops.convert_to_numpy(loss), expected, rtol=1e-6)


def test_config():
    loss = SoftTargetCrossEntropy(2.5, reduction="sum", name="soft")
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert isinstance(copy, SoftTargetCrossEntropy) and copy.get_config() == loss.get_config()
    assert (copy.temperature, copy.reduction, copy.name) == (2.5, "sum", "soft")


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        SoftTargetCrossEntropy(temperature)


def test_other_classes():
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(2, 4\)"):
        SoftTargetCrossEntropy()(logits(2, 5), logits(2, 4))
