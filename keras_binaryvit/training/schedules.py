"""The paper's learning rate, scaled by the batch, and WarmupStableDecay. The paper's schedule is `CosineDecay`."""

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
class WarmupStableDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises to its peak, stays there, and falls to its end, the rise and the fall linear.

    Until the fall begins, it doesn't depend on how many steps there will be: a run can be prolonged from a checkpoint
    of this part.

    Args:
        initial_learning_rate: Where the rise begins.
        learning_rate: The peak.
        final_learning_rate: Where the fall ends.
        warmup_steps: Steps of the rise.
        decay_steps: Steps of the fall.
        total_steps: Steps of all three parts.

    Raises:
        ValueError: Rise and fall take more than all steps.

    Source: Hu et al. (MiniCPM), arXiv 2404.06395; Hägele et al., arXiv 2405.18392.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        learning_rate: float,
        final_learning_rate: float,
        warmup_steps: int,
        decay_steps: int,
        total_steps: int,
    ):
        if not (warmup_steps >= 0 and decay_steps > 0 and warmup_steps + decay_steps <= total_steps):
            raise ValueError(
                "warmup_steps and decay_steps must fit into total_steps. "
                f"Received: {warmup_steps} and {decay_steps} of {total_steps}"
            )
        self.initial_learning_rate = initial_learning_rate
        self.learning_rate = learning_rate
        self.final_learning_rate = final_learning_rate
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self.total_steps = total_steps

    def __call__(self, step: int | Tensor) -> Tensor:
        step = ops.cast(step, "float32")
        risen = step / self.warmup_steps if self.warmup_steps else 1.0
        left = (self.total_steps - step) / self.decay_steps
        rise = self.initial_learning_rate + (self.learning_rate - self.initial_learning_rate) * ops.minimum(risen, 1.0)
        fall = (self.learning_rate - self.final_learning_rate) * (1 - ops.clip(left, 0.0, 1.0))
        return rise - fall

    def get_config(self) -> dict:
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "learning_rate": self.learning_rate,
            "final_learning_rate": self.final_learning_rate,
            "warmup_steps": self.warmup_steps,
            "decay_steps": self.decay_steps,
            "total_steps": self.total_steps,
        }
