"""What the callbacks log, against what NumPy says of kernels and attention; when they warn; what ProgressBar writes."""

import csv
import io
import re
import warnings

import keras
import numpy as np
import pytest

import keras_binaryvit as kb
from keras_binaryvit.training import AttentionMonitor, FlipMonitor, ProgressBar, callbacks

VIT = {"image_shape": (8, 8, 1), "num_classes": 3, "patch_size": 2, "embed_dims": (8,), "depths": (1,)}
VIT |= {"num_heads": (2,), "sr_ratios": (2,), "mlp_ratios": (2,)}


def build(optimizer=None):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            kb.layers.QuantDense(5, kernel_quantizer="centered_scaled_sign", name="first"),
            kb.layers.QuantDense(3, input_quantizer="ste_sign", kernel_quantizer="ste_sign", name="second"),
            keras.layers.Dense(3),
        ]
    )
    model.compile(optimizer or keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    return model


class Change(keras.callbacks.Callback):
    """Changes kernels in the middle of an epoch."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        for name, change in self.change(self.epoch).items():
            kernel = self.model.get_layer(name).kernel
            kernel.assign(change(keras.ops.convert_to_numpy(kernel)))


def run(model, callbacks, epochs=1, **arguments):
    x = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:]))
    y = np.zeros((4, 3))
    return model.fit(x, y, batch_size=4, epochs=epochs, callbacks=callbacks, verbose=0, **arguments).history


def test_flip_ratios():
    def flip(epoch):
        def some(kernel):
            kernel = kernel.copy()
            kernel[: epoch + 1, 0] *= -1
            return kernel

        return {"second": some}

    model = build(keras.optimizers.SGD(0.0))
    history = run(model, [FlipMonitor(), Change(flip)], epochs=2)
    np.testing.assert_allclose(history["flip_ratio/second"], [1 / 15, 2 / 15])
    np.testing.assert_allclose(history["flip_ratio/first"], [0, 0])
    np.testing.assert_allclose(history["flip_ratio"], [1 / 45, 2 / 45])


def test_signs_of_a_centered_kernel():
    rng = np.random.default_rng(1)
    before, after = rng.normal(size=(2, 6, 5)) + 3  # their means decide: all are positive
    model = build(keras.optimizers.SGD(0.0))
    model.get_layer("first").kernel.assign(before)
    history = run(model, [FlipMonitor(), Change(lambda epoch: {"first": lambda kernel: after})])
    signs = [kernel.astype("float32") - kernel.mean(0) >= 0 for kernel in (before, after)]
    np.testing.assert_allclose(history["flip_ratio/first"], [np.mean(signs[0] != signs[1])])
    assert history["flip_ratio/first"][0] > 0.1


def dying(schedule, epochs):
    model = build(keras.optimizers.SGD(schedule))
    still = Change(lambda epoch: {name: lambda _, kernel=kernel: kernel for name, kernel in start.items()})
    start = {name: keras.ops.convert_to_numpy(model.get_layer(name).kernel) for name in ("first", "second")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(model, [FlipMonitor(), still], epochs=epochs)
    return [str(warning.message) for warning in caught if "stopped changing" in str(warning.message)]


def test_warns_once_when_flips_die_out():
    (message,) = dying(0.1, 3)
    assert "0 of 45 flipped in epoch 1, at a learning rate of 0.1" in message


def test_no_warning_when_training_ends():
    class End(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return keras.ops.where(step < 2, 1.0, 0.001)

    model = build(keras.optimizers.SGD(End()))
    turn = Change(lambda epoch: {"second": lambda kernel: -kernel if epoch == 0 else kernel})
    model.get_layer("first").trainable = model.get_layer("second").trainable = False
    model.compile(model.optimizer, "mse", jit_compile=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*stopped changing")
        history = run(model, [turn, FlipMonitor()], epochs=3)
    assert history["flip_ratio"][0] > 0 and history["flip_ratio"][2] == 0


def test_attention():
    keras.utils.set_random_seed(1)
    model = kb.BinaryViT(**VIT)
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=keras.backend.backend() != "jax")
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype("float32")
    (layer,) = [layer for layer in model._flatten_layers() if isinstance(layer, kb.layers.BinarySelfAttention)]
    layer.binarizer.clip.assign(0.5)
    scores = []

    class Spy(kb.layers.BinarySelfAttention):
        """Keeps the scores that the layer itself returns."""

        def call(self, inputs, training=None):
            outputs, attention = super().call(inputs, training=training, return_attention_scores=True)
            scores.append(keras.ops.convert_to_numpy(attention))
            return outputs

    layer.__class__ = Spy
    model(images, training=False)
    layer.__class__ = kb.layers.BinarySelfAttention
    expected = np.mean(scores[0] > 0)
    assert scores[0].shape == (3, 2, 16, 4) and 0 < expected < 1
    history = run(model, [AttentionMonitor(images)])
    name = layer.path.replace("/", ".")
    assert name == "block_0.attention"
    # SGD at a rate of 0 changes nothing but the moving statistics.
    assert set(history) == {"loss", f"attention_bits/{name}", f"attention_clip/{name}"}
    np.testing.assert_allclose(history[f"attention_clip/{name}"], [0.5])
    scores.clear()
    layer.__class__ = Spy
    model(images, training=False)
    np.testing.assert_allclose(history[f"attention_bits/{name}"], [np.mean(scores[0] > 0)], rtol=1e-6)


@pytest.mark.parametrize("clip, bits", [(1e-6, 1), (3.0, 0)])
def test_warns_once_when_attention_saturates(clip, bits):
    model = kb.BinaryViT(**VIT)
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=keras.backend.backend() != "jax")
    next(layer for layer in model._flatten_layers() if layer.name == "binarizer").clip.assign(clip)
    with pytest.warns(UserWarning, match=rf"no longer chooses after epoch 1.*attention \(all {bits}, clip") as caught:
        history = run(model, [AttentionMonitor(np.zeros((1, 8, 8, 1)))], epochs=2)
    assert len([warning for warning in caught if "no longer chooses" in str(warning.message)]) == 1
    (values,) = [values for name, values in history.items() if name.startswith("attention_bits")]
    assert values == [bits, bits]


def test_callbacks_after_it_see_the_logs(tmp_path):
    run(build(), [FlipMonitor(), keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))])
    (row,) = csv.DictReader((tmp_path / "log.csv").open())
    assert {"flip_ratio", "flip_ratio/first", "flip_ratio/second"} <= set(row)


@pytest.mark.parametrize("monitor, what", [(FlipMonitor(), "binarized kernel"), (AttentionMonitor(0), "BinarySelfAtt")])
def test_nothing_to_watch(monitor, what):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(ValueError, match=f"found no .*{what}.*leave it out"):
        run(model, [monitor])


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
    monkeypatch.setattr(callbacks, "time", clock)
    return clock


def show(clock, file, count=10, epochs=2, known=True, seconds_of_evaluation=5, **arguments):
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
    history = show(clock, io.StringIO(), count)
    np.testing.assert_allclose(history["images_per_second"], [count / steps] * 2)


def test_evaluation_does_not_count(clock):
    file = io.StringIO()
    zeros = np.zeros((7, 2), "float32")
    history = show(clock, file, validation_data=(zeros, zeros[:, :1]))
    np.testing.assert_allclose(history["images_per_second"], [10 / 3] * 2)
    first, second = file.getvalue().splitlines()
    assert re.fullmatch(r"epoch 1/2  0:00:08  3.333 images/s  loss 0  val_loss 0  0:00:08 left", first)
    assert re.fullmatch(r"epoch 2/2  0:00:08  3.333 images/s  loss 0  val_loss 0", second)


def test_one_plain_line_an_epoch_in_files(clock):
    file = io.StringIO()
    show(clock, file, epochs=3)
    lines = file.getvalue().splitlines()
    assert len(lines) == 3 and "\r" not in file.getvalue() and "\x1b" not in file.getvalue()
    assert lines[0].endswith("0:00:06 left") and lines[1].endswith("0:00:03 left")


def test_a_bar_on_terminals(clock):
    file = Terminal()
    show(clock, file, epochs=1)
    drawings = file.getvalue().split("\r")[1:]
    assert drawings[0] == "epoch 1/1  [=======             ] 1/3  loss 0  4 images/s  0:00:02 left\x1b[K"
    assert drawings[2] == "epoch 1/1  [====================] 3/3  loss 0  3.333 images/s  0:00:00 left\x1b[K"
    assert drawings[3] == "epoch 1/1  0:00:03  3.333 images/s  loss 0\x1b[K\n"


def test_unknown_number_of_steps(clock):
    file = Terminal()
    history = show(clock, file, known=False)
    # Keras begins one more step in every epoch, in which it finds that there is none.
    np.testing.assert_allclose(history["images_per_second"], [10 / 4] * 2)
    drawings = file.getvalue().split("\r")[1:]
    assert drawings[1].startswith("epoch 1/2  step 2  loss 0  4 images/s")
    assert "] 1/3 " in drawings[4]


def test_long_lines_are_cut(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    file = Terminal()
    show(clock, file, epochs=1)
    assert all(len(drawing) - len("\x1b[K") < 30 for drawing in file.getvalue().split("\r")[1:-1])


def test_durations():
    assert [callbacks._duration(seconds) for seconds in (0, 59.6, 3599, 90061)] == [
        "0:00:00",
        "0:01:00",
        "0:59:59",
        "25:01:01",
    ]
