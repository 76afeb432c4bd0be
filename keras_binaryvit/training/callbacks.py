"""FlipMonitor, AttentionMonitor and ProgressBar: what to watch in the training of a binary network.

Each adds values to the logs of an epoch, where every callback listed after it sees them: `keras.callbacks.CSVLogger`
and `TensorBoard`, `TrainingCheckpoint`, and `History`.
"""

import contextlib
import shutil
import sys
import time
import warnings
from typing import TextIO

import keras
import numpy as np
from keras import ops

from keras_binaryvit import quantizers
from keras_binaryvit.layers import BinarySelfAttention
from keras_binaryvit.typing import Logs, Tensor

_DEAD_FLIP_RATIO = 1e-5
_SMALL_LEARNING_RATE = 0.01  # of the largest so far
_SECONDS_BETWEEN_DRAWINGS = 1.0  # on JAX, whose state has to be fetched to count images, a drawing isn't free
_BAR_WIDTH = 20


class FlipMonitor(keras.callbacks.Callback):
    """Logs the share of signs in binarized kernels that changed from the beginning of an epoch to its end.

    A latent weight trains its network only when its sign flips: many flips are noise, and no flips the end of learning.
    `flip_ratio` counts all binarized kernels, `flip_ratio/NAME` one, with the layer's path in the model as NAME and `.`
    for `/`: `flip_ratio/block_0.attention.query.dense`. The signs are those that the layer multiplies by, those of a
    centered kernel after its mean was subtracted. A model with an attribute `student` is watched in this student.

    Warns once when flips die out: when fewer than one sign in 100,000 changed in an epoch at whose end the learning
    rate is still above 1 % of the largest so far.

    Raises:
        ValueError: When training begins: the model has no layer with a binarized kernel.
    """

    def on_train_begin(self, logs: Logs = None) -> None:
        self._layers = {
            _name(layer, self.model): layer
            for layer in _layers(self.model)
            if quantizers.is_one_bit(getattr(layer, "kernel_quantizer", None)) and hasattr(layer, "quantized_kernel")
        }
        if not self._layers:
            raise ValueError(
                f"FlipMonitor found no layer with a binarized kernel in {self.model.name!r}: leave it out."
            )
        self._largest_learning_rate = 0.0
        self._warned = False

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._before = self._signs()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        _sync(self.model)
        after = self._signs()
        flips = {name: int(np.sum(signs != self._before[name])) for name, signs in after.items()}
        total = sum(flips.values()) / sum(signs.size for signs in after.values())
        logs["flip_ratio"] = total
        logs.update({f"flip_ratio/{name}": count / after[name].size for name, count in flips.items()})
        learning_rate = float(ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self._largest_learning_rate = max(self._largest_learning_rate, learning_rate)
        learns = learning_rate >= _SMALL_LEARNING_RATE * self._largest_learning_rate
        if total < _DEAD_FLIP_RATIO and learns and not self._warned:
            self._warned = True
            warnings.warn(
                f"The signs of the binarized kernels stopped changing: {sum(flips.values())} of "
                f"{sum(signs.size for signs in after.values())} flipped in epoch {epoch + 1}, at a learning rate of "
                f"{learning_rate:.3g}. The latent weights may have grown beyond the quantizer's gradient, where "
                "kernel_constraint='weight_clip' helps, or the learning rate is too small for them.",
                stacklevel=2,
            )

    def _signs(self):
        return {name: ops.convert_to_numpy(layer.quantized_kernel()[0]) > 0 for name, layer in self._layers.items()}


class AttentionMonitor(keras.callbacks.Callback):
    """Logs what the binarized attention does on a few images: the share of its bits that are set, and its clip.

    `attention_bits/NAME` is the share of probabilities above half the clip, `attention_clip/NAME` the clip itself, one
    pair a `BinarySelfAttention`, with the layer's path in the model as NAME and `.` for `/`:
    `attention_bits/block_0.attention`. A model with an attribute `student` is watched in this student.

    Warns once for each layer that saturates, where every bit is 0 (it passes nothing on) or 1 (it averages over all
    positions).

    Args:
        images: What the model is called with at the end of each epoch, `(batch, height, width, channels)`: 8 to 32
            images do.

    Raises:
        ValueError: When training begins: the model has no `BinarySelfAttention` with binarized probabilities.
    """

    def __init__(self, images: Tensor):
        super().__init__()
        self.images = images

    def on_train_begin(self, logs: Logs = None) -> None:
        self._layers = {
            _name(layer, self.model): layer
            for layer in _layers(self.model)
            if isinstance(layer, BinarySelfAttention) and layer.binary_probabilities
        }
        if not self._layers:
            raise ValueError(
                f"AttentionMonitor found no BinarySelfAttention with binarized probabilities in {self.model.name!r}: "
                "leave it out."
            )
        self._warned: set[str] = set()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        _sync(self.model)
        shares: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            for name, layer in self._layers.items():
                stack.enter_context(_recording(layer.binarizer, name, shares))
            _trained(self.model)(self.images, training=False)
        for name, layer in self._layers.items():
            logs[f"attention_bits/{name}"] = shares[name]
            logs[f"attention_clip/{name}"] = float(ops.convert_to_numpy(layer.binarizer.clip))
        saturated = {name for name, share in shares.items() if share in (0, 1)} - self._warned
        if saturated:
            self._warned |= saturated
            described = ", ".join(
                f"{name} (all {shares[name]:.0f}, clip {logs[f'attention_clip/{name}']:.3g})"
                for name in self._layers
                if name in saturated
            )
            warnings.warn(
                f"Attention no longer chooses after epoch {epoch + 1}: all bits are the same in {described}. "
                "All 0 pass nothing on, all 1 average over all positions. Where training doesn't leave this state, try "
                "a lower learning rate or another initial clip.",
                stacklevel=2,
            )


@contextlib.contextmanager
def _recording(binarizer, name, shares):
    """Puts the share of set bits of the next call into `shares[name]`."""
    decompose = binarizer.decompose

    def recorded(probabilities):
        bits, clip = decompose(probabilities)
        shares[name] = float(ops.convert_to_numpy(ops.mean(bits)))
        return bits, clip

    binarizer.decompose = recorded
    try:
        yield
    finally:
        del binarizer.decompose


class ProgressBar(keras.callbacks.Callback):
    """Shows progress in place of Keras' own bar (`fit(..., verbose=0)`), and logs `images_per_second`.

    On a terminal a line is drawn again every second: epoch, steps, loss, images a second and the time left in the
    epoch. After an epoch one line stays: its duration, images a second, the logs without a `/` in their name, and the
    time left for all epochs at the pace so far. A file or a pipe gets only these.

    Images are those that the model's loss has counted since the epoch began, so the last batch may be smaller and the
    number of steps unknown (after the first epoch it is known). Their rate is that of training: evaluation doesn't
    count. List it after the callbacks whose logs it shall show, and before those that shall see `images_per_second`.

    Args:
        file: Where to write; `None` means `sys.stdout`.
    """

    def __init__(self, file: TextIO | None = None):
        super().__init__()
        self.file = file
        self._in_epoch = False

    def on_train_begin(self, logs: Logs = None) -> None:
        self._file = self.file or sys.stdout
        self._steps = self.params.get("steps")
        self._training_begun = time.monotonic()
        self._epochs_done = 0

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._in_epoch = True
        self._epoch = epoch
        self._step = 0
        self._rate = None
        self._epoch_begun = self._drawn = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        self._step = batch + 1
        now = time.monotonic()
        if self._file.isatty() and now - self._drawn >= _SECONDS_BETWEEN_DRAWINGS:
            self._drawn = now
            self._draw(logs or {})

    def on_test_begin(self, logs: Logs = None) -> None:
        self._stop_counting()  # before evaluation begins to count its own images

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self._stop_counting()
        self._in_epoch = False
        self._epochs_done += 1
        self._steps = self._step
        values = [f"{name} {value:.4g}" for name, value in logs.items() if "/" not in name]
        now = time.monotonic()
        left = self.params["epochs"] - epoch - 1
        pace = (now - self._training_begun) / self._epochs_done
        parts = [self._title(), _duration(now - self._epoch_begun), f"{self._rate:,.4g} images/s", *values]
        if left:
            parts.append(f"{_duration(left * pace)} left")
        self._write("  ".join(parts) + "\n")
        logs["images_per_second"] = self._rate

    def _draw(self, logs):
        elapsed = self._drawn - self._epoch_begun
        parts = [self._title()]
        if self._steps:
            done = min(self._step / self._steps, 1.0)
            bar = "=" * round(done * _BAR_WIDTH)
            parts.append(f"[{bar:{_BAR_WIDTH}}] {self._step}/{self._steps}")
        else:
            parts.append(f"step {self._step}")
        if "loss" in logs:
            parts.append(f"loss {float(logs['loss']):.4g}")
        parts.append(f"{self._images() / elapsed:,.4g} images/s")
        if self._steps:
            parts.append(f"{_duration(elapsed * (1 / done - 1))} left")
        self._write("  ".join(parts)[: shutil.get_terminal_size().columns - 1])

    def _title(self):
        return f"epoch {self._epoch + 1}/{self.params['epochs']}"

    def _stop_counting(self):
        if self._in_epoch and self._rate is None:
            images = self._images()  # waits for the last step where steps are computed in the background
            self._rate = images / (time.monotonic() - self._epoch_begun)

    def _images(self):
        _sync(self.model)
        loss = next(metric for metric in self.model.metrics if metric.name == "loss")
        return int(ops.convert_to_numpy(loss.count))

    def _write(self, text):
        # Back to the start of the line, and what is left of a longer one before is erased.
        self._file.write(f"\r{text.rstrip()}\x1b[K" + "\n" * text.endswith("\n") if self._file.isatty() else text)
        self._file.flush()


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _trained(model):
    return getattr(model, "student", model)


def _layers(model):
    return _trained(model)._flatten_layers(include_self=False)


def _name(layer, model):
    return layer.path.removeprefix(f"{_trained(model).name}/").replace("/", ".")


def _sync(model):
    """Brings the variables up to date, which JAX keeps elsewhere while it trains."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
