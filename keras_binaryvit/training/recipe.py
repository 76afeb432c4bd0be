"""The paper's learning rate: scaled by the batch, on a cosine to 1e-5 that moves once an epoch."""

import math

import keras
from keras import ops

from keras_binaryvit.layers.validation import positive_integer
from keras_binaryvit.typing import Tensor


def scaled_learning_rate(global_batch_size: int, base: float = 5e-4) -> float:
    """Returns the paper's initial learning rate, `base * global_batch_size / 512`.

    Args:
        global_batch_size: Images a step, over all devices and hosts; times the accumulated steps, if any.
        base: The learning rate for 512 images.

    Raises:
        ValueError: The batch size isn't a positive integer, or `base` isn't positive.

    Source: BinaryViT, arXiv 2306.16678, and the authors' code, where 512 images are 8 devices' 64.
    """
    if not base > 0:
        raise ValueError(f"The base learning rate must be positive. Received: base={base}")
    return base * positive_integer("global_batch_size", global_batch_size) / 512


@keras.saving.register_keras_serializable("keras_binaryvit")
class CosineSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that falls from `initial` to `final` on half a cosine, after an optional linear warm-up.

    With N = `epochs`, W = `warmup_epochs` and e the epochs done,

        e < W:  initial (e + 1) / (W + 1) once an epoch, initial e / W step by step
        else:   final + (initial - final) (1 + cos(pi (e - W) / (N - W))) / 2

    and `final` from N on. Per epoch, e is whole and the rate stays the same within an epoch, as PyTorch's
    `CosineAnnealingLR` does when it is stepped once an epoch; per step, e has a fraction.

    Args:
        initial: The highest learning rate, such as `scaled_learning_rate(batch_size)`.
        epochs: N, the epochs of the whole training.
        steps_per_epoch: Steps of the optimizer in an epoch, `len(dataset)`.
        final: The learning rate at the end.
        warmup_epochs: W; the paper has none.
        per: `"epoch"`, the paper's, or `"step"`.

    Raises:
        ValueError: An argument is out of its range, or the warm-up leaves no epoch.

    Source: BinaryViT, arXiv 2306.16678, and the authors' code; Loshchilov and Hutter, arXiv 1608.03983, eq. 5.
    """

    def __init__(
        self,
        initial: float,
        epochs: int,
        steps_per_epoch: int,
        final: float = 1e-5,
        warmup_epochs: int = 0,
        per: str = "epoch",
    ):
        if not (initial > 0 and final >= 0):
            raise ValueError(
                f"Learning rates must be positive, the last may be 0. Received: initial={initial}, final={final}"
            )
        if per not in ("epoch", "step"):
            raise ValueError(f"The schedule moves per 'epoch' or per 'step'. Received: per={per!r}")
        self.initial = initial
        self.epochs = positive_integer("epochs", epochs)
        self.steps_per_epoch = positive_integer("steps_per_epoch", steps_per_epoch)
        self.final = final
        self.warmup_epochs = positive_integer("warmup_epochs", warmup_epochs) if warmup_epochs else 0
        self.per = per
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"The warm-up must be shorter than the training. Received: warmup_epochs={warmup_epochs}, "
                f"epochs={epochs}"
            )

    def __call__(self, step: Tensor) -> Tensor:
        """Returns the learning rate of `step`, the number of steps done."""
        # Whole epochs are divided out as integers: float32 can't tell late steps apart.
        step = ops.cast(step, "int32")
        epoch = ops.cast(step // self.steps_per_epoch, "float32")
        if self.per == "step":
            epoch = epoch + ops.cast(step % self.steps_per_epoch, "float32") / self.steps_per_epoch
        share = ops.clip((epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs), 0.0, 1.0)
        rate = self.final + (self.initial - self.final) * 0.5 * (1 + ops.cos(math.pi * share))
        if not self.warmup_epochs:
            return rate
        rising = (epoch + 1) / (self.warmup_epochs + 1) if self.per == "epoch" else epoch / self.warmup_epochs
        return ops.where(epoch < self.warmup_epochs, self.initial * rising, rate)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            "initial": self.initial,
            "epochs": self.epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "final": self.final,
            "warmup_epochs": self.warmup_epochs,
            "per": self.per,
        }
