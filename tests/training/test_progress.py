"""ProgressBar: what it writes to terminals and files, and that it counts images right."""

import io
import re

import keras
import numpy as np
import pytest

from keras_binaryvit.training import ProgressBar, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """A second a step."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def run(clock, file, count=10, epochs=2, known=True, seconds_of_evaluation=5, **arguments):
    """Trains on `count` images in batches of 4, one batch a second."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)

    class Tick(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            clock.now += 1

        def on_test_end(self, logs=None):
            clock.now += seconds_of_evaluation

    zeros = np.zeros((count, 2), "float32")
    data = (zeros, zeros[:, :1])
    if not known:
        tf = pytest.importorskip("tensorflow")
        data = (tf.data.Dataset.from_tensor_slices(data).batch(4).filter(lambda *_: True),)
    arguments |= {"batch_size": 4} if known else {}
    history = model.fit(*data, epochs=epochs, verbose=0, callbacks=[Tick(), ProgressBar(file)], **arguments)
    return history.history


@pytest.mark.parametrize("count, steps", [(10, 3), (12, 3), (1, 1)])
def test_counts_images(clock, count, steps):
    history = run(clock, io.StringIO(), count)
    np.testing.assert_allclose(history["images_per_second"], [count / steps] * 2)


def test_evaluation_does_not_count(clock):
    file = io.StringIO()
    zeros = np.zeros((7, 2), "float32")
    history = run(clock, file, validation_data=(zeros, zeros[:, :1]))
    np.testing.assert_allclose(history["images_per_second"], [10 / 3] * 2)
    first, second = file.getvalue().splitlines()
    assert re.fullmatch(r"epoch 1/2  0:00:08  3.333 images/s  loss 0  val_loss 0  0:00:08 left", first)
    assert re.fullmatch(r"epoch 2/2  0:00:08  3.333 images/s  loss 0  val_loss 0", second)


def test_one_plain_line_an_epoch_in_files(clock):
    file = io.StringIO()
    run(clock, file, epochs=3)
    lines = file.getvalue().splitlines()
    assert len(lines) == 3 and "\r" not in file.getvalue() and "\x1b" not in file.getvalue()
    assert lines[0].endswith("0:00:06 left") and lines[1].endswith("0:00:03 left")


def test_a_bar_on_terminals(clock):
    file = Terminal()
    run(clock, file, epochs=1)
    drawings = file.getvalue().split("\r")[1:]
    assert drawings[0] == "epoch 1/1  [=======             ] 1/3  loss 0  4 images/s  0:00:02 left\x1b[K"
    assert drawings[2] == "epoch 1/1  [====================] 3/3  loss 0  3.333 images/s  0:00:00 left\x1b[K"
    assert drawings[3] == "epoch 1/1  0:00:03  3.333 images/s  loss 0\x1b[K\n"


def test_unknown_number_of_steps(clock):
    file = Terminal()
    history = run(clock, file, known=False)
    # Keras begins one more step in every epoch, in which it finds that there is none.
    np.testing.assert_allclose(history["images_per_second"], [10 / 4] * 2)
    drawings = file.getvalue().split("\r")[1:]
    assert drawings[1].startswith("epoch 1/2  step 2  loss 0  4 images/s")
    assert "] 1/3 " in drawings[4]


def test_long_lines_are_cut(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    file = Terminal()
    run(clock, file, epochs=1)
    assert all(len(drawing) - len("\x1b[K") < 30 for drawing in file.getvalue().split("\r")[1:-1])


def test_durations():
    assert [progress._duration(seconds) for seconds in (0, 59.6, 3599, 90061)] == [
        "0:00:00",
        "0:01:00",
        "0:59:59",
        "25:01:01",
    ]
