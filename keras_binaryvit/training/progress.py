"""ProgressBar: images a second and time left, as a bar on a terminal and one line an epoch everywhere else."""

import shutil
import sys
import time
from typing import TextIO

import keras
from keras import ops

from keras_binaryvit.typing import Logs

_SECONDS_BETWEEN_DRAWINGS = 1.0  # on JAX, whose state has to be fetched to count images, a drawing isn't free
_BAR_WIDTH = 20


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
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
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
