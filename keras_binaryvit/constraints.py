"""Constraints on latent weights, with Larq's names."""

from collections.abc import Callable

import keras
from keras import ops

from keras_binaryvit.typing import Tensor


@keras.saving.register_keras_serializable("keras_binaryvit")
class WeightClip(keras.constraints.Constraint):
    """Keeps every weight in [-`clip_value`, `clip_value`], where a straight-through gradient reaches it.

    Args:
        clip_value: The largest magnitude.
    """

    def __init__(self, clip_value: float = 1.0):
        self.clip_value = clip_value

    def __call__(self, w: Tensor) -> Tensor:
        """Returns the clipped `w`."""
        return ops.clip(w, -self.clip_value, self.clip_value)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {"clip_value": self.clip_value}


def get(identifier: str | dict | Callable | None) -> keras.constraints.Constraint | None:
    """Returns the constraint that `identifier` stands for: Larq's name `"weight_clip"`, or anything Keras knows."""
    if identifier in ("weight_clip", "WeightClip"):
        return WeightClip()
    return keras.constraints.get(identifier)
