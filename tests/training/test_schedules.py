"""The learning rate that the paper scales by the batch."""

import pytest

from keras_binaryvit.training import scaled_learning_rate


def test_scaled_learning_rate():
    assert scaled_learning_rate(512) == 5e-4  # 8 devices of 64 images, as in the paper
    assert scaled_learning_rate(128, base=1e-3) == 2.5e-4


@pytest.mark.parametrize("arguments, message", [((0,), "global_batch_size=0"), ((64, -1.0), "base=-1")])
def test_scaled_learning_rate_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        scaled_learning_rate(*arguments)
