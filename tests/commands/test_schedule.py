"""The learning rate of binaryvit-train, against NumPy and PyTorch's CosineAnnealingLR."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from binaryvit_commands.recipe import Recipe
from binaryvit_commands.training import schedule


def rates(steps, at, **arguments):
    learning_rate = schedule(Recipe("digits", **arguments), steps)
    return [float(ops.convert_to_numpy(learning_rate(index))) for index in at]


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=5e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=300, eta_min=1e-5)
    expected = []
    for _ in range(300):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    np.testing.assert_allclose(rates(3, range(300)), expected, rtol=1e-5)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(
    epochs=st.integers(2, 12),
    steps=st.integers(1, 4),
    warmup=st.integers(0, 3),
    highest=st.floats(1e-4, 1e-1),
    per=st.sampled_from(["epoch", "step"]),
    decay=st.none() | st.integers(1, 3),
)
def test_in_numpy(epochs, steps, warmup, highest, per, decay):
    decay = decay and min(decay, epochs)
    warmup = min(warmup, epochs - (decay or 1))
    unit = 1 if per == "epoch" else steps
    done = np.arange(epochs * unit + 2) / unit
    rising = highest * ((done + 1) / (warmup + 1) if per == "epoch" else done / max(warmup, 1))
    if decay is None:
        angle = np.pi * np.minimum((done - warmup) / (epochs - warmup), 1)
        rest = 1e-5 + (highest - 1e-5) * np.cos(angle / 2) ** 2
    else:
        rest = np.interp(done, [epochs - decay, epochs], [highest, 1e-5])
    expected = np.where(done < warmup, rising, rest)
    received = rates(
        steps,
        range(len(done)),
        epochs=epochs,
        warmup_epochs=warmup,
        decay_epochs=decay,
        learning_rate=highest,
        schedule=per,
    )
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"learning_rate": 0.0}, "must be positive.*Received: 0.0"),
        ({"final_learning_rate": -1e-5}, "Received: 0.0005 and -1e-05"),
        ({"epochs": 4, "warmup_epochs": 4}, "fit into the training. Received: warmup_epochs=4, decay_epochs=None"),
        ({"epochs": 4, "warmup_epochs": 2, "decay_epochs": 3}, "warmup_epochs=2, decay_epochs=3, epochs=4"),
        ({"epochs": 4, "decay_epochs": 0}, "decay_epochs=0, epochs=4"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        rates(10, [], **arguments)
