"""FlipMonitor, AttentionMonitor and LearningRateMonitor: what to watch in the training of a binary network.

Each adds values to the logs of an epoch, where every callback listed after it sees them: `keras.callbacks.CSVLogger`
and `TensorBoard`, `ProgressBar`, `TrainingCheckpoint`, and `History`.
"""

import contextlib
import warnings

import keras
import numpy as np
from keras import ops

from keras_binaryvit import quantizers
from keras_binaryvit.layers import BinarySelfAttention
from keras_binaryvit.typing import Logs, Tensor

_DEAD_FLIP_RATIO = 1e-5
_SMALL_LEARNING_RATE = 0.01  # of the largest so far


class LearningRateMonitor(keras.callbacks.Callback):
    """Logs `learning_rate`, that of the last step of the epoch."""

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        logs["learning_rate"] = _learning_rate(self.model)


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
        learning_rate = _learning_rate(self.model)
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


def _learning_rate(model):
    _sync(model)
    return float(ops.convert_to_numpy(model.optimizer.learning_rate))
