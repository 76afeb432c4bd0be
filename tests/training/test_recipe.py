"""The learning rate against NumPy and PyTorch's CosineAnnealingLR."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_binaryvit.optimizers import AdamW
from keras_binaryvit.training import CosineSchedule, scaled_learning_rate


def rates(schedule, steps):
    return [float(ops.convert_to_numpy(schedule(step))) for step in steps]


def test_scaled_learning_rate():
    assert scaled_learning_rate(512) == 5e-4  # 8 devices of 64 images, as in the paper
    assert scaled_learning_rate(128, base=1e-3) == 2.5e-4


@pytest.mark.parametrize("arguments, message", [((0,), "global_batch_size=0"), ((64, -1.0), "base=-1")])
def test_scaled_learning_rate_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        scaled_learning_rate(*arguments)


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=5e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=300, eta_min=1e-5)
    expected = []
    for _ in range(300):
        expected += [optimizer.param_groups[0]["lr"]] * 3
        optimizer.step()
        theirs.step()
    np.testing.assert_allclose(rates(CosineSchedule(5e-4, 300, 3), range(900)), expected, rtol=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(
    epochs=st.integers(2, 40),
    steps=st.integers(1, 6),
    warmup=st.integers(0, 3),
    initial=st.floats(1e-4, 1e-1),
    per=st.sampled_from(["epoch", "step"]),
)
def test_in_numpy(epochs, steps, warmup, initial, per):
    warmup = min(warmup, epochs - 1)
    schedule = CosineSchedule(initial, epochs, steps, 1e-5, warmup, per)
    done = np.arange(epochs * steps + 5)
    at = done // steps if per == "epoch" else done / steps
    rising = initial * ((at + 1) / (warmup + 1) if per == "epoch" else at / max(warmup, 1))
    angle = np.pi * np.minimum((at - warmup) / (epochs - warmup), 1)
    expected = np.where(at < warmup, rising, 1e-5 + (initial - 1e-5) * np.cos(angle / 2) ** 2)
    np.testing.assert_allclose(rates(schedule, done), expected, rtol=1e-4, atol=1e-9)


def test_late_steps_are_told_apart():
    steps = 100_000
    schedule = CosineSchedule(1e-3, 300, steps)
    before, after = rates(schedule, [299 * steps - 1, 299 * steps])
    assert before == rates(schedule, [298 * steps])[0] != after


def test_drives_an_optimizer_and_is_saved_with_it():
    schedule = CosineSchedule(1e-2, 3, 2, warmup_epochs=1, per="step")
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(AdamW(schedule)))
    copy = optimizer._learning_rate
    assert isinstance(copy, CosineSchedule) and copy.get_config() == schedule.get_config()
    weight, seen = keras.Variable([1.0]), []
    optimizer.build([weight])
    for _ in range(7):
        seen.append(float(ops.convert_to_numpy(optimizer.learning_rate)))
        optimizer.apply([ops.ones((1,))], [weight])
    np.testing.assert_allclose(seen, rates(schedule, range(7)))
    np.testing.assert_allclose(seen[-1], 1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"initial": 0.0}, "initial=0"),
        ({"final": -1e-5}, "final=-1e-05"),
        ({"epochs": 0}, "epochs=0"),
        ({"steps_per_epoch": 2.5}, "steps_per_epoch=2.5"),
        ({"warmup_epochs": 4}, "warmup_epochs=4"),
        ({"per": "batch"}, "per='batch'"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        CosineSchedule(**{"initial": 1e-3, "epochs": 4, "steps_per_epoch": 10, **arguments})
