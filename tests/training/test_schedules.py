"""The learning rate that the paper scales by the batch, and WarmupStableDecay."""

import keras
import pytest

from keras_binaryvit.training import WarmupStableDecay, scaled_learning_rate


def test_scaled_learning_rate():
    assert scaled_learning_rate(512) == 5e-4  # 8 devices of 64 images, as in the paper
    assert scaled_learning_rate(128, base=1e-3) == 2.5e-4


@pytest.mark.parametrize("arguments, message", [((0,), "global_batch_size=0"), ((64, -1.0), "base=-1")])
def test_scaled_learning_rate_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        scaled_learning_rate(*arguments)


def test_a_prolonged_run_begins_as_the_shorter_one():
    short, long = (WarmupStableDecay(0.0, 2e-3, 1e-5, 4, 6, total) for total in (20, 50))
    same, fallen = ([float(schedule(step)) for schedule in (short, long)] for step in (14, 20))
    assert same == pytest.approx([2e-3, 2e-3])
    assert fallen == pytest.approx([1e-5, 2e-3], rel=1e-4)


def test_warmup_stable_decay_is_saved_with_its_optimizer():
    schedule = WarmupStableDecay(1e-4, 2e-3, 1e-5, 4, 6, 20)
    saved = keras.optimizers.serialize(keras.optimizers.Adam(schedule))
    assert keras.optimizers.deserialize(saved)._learning_rate.get_config() == schedule.get_config()


def test_warmup_stable_decay_rejects():
    with pytest.raises(ValueError, match="Received: 8 and 6 of 10"):
        WarmupStableDecay(0.0, 2e-3, 1e-5, 8, 6, 10)
