"""SoftTargetCrossEntropy: the paper's only loss, from a teacher's logits."""

from typing import Any

import keras
from keras import ops

from keras_binaryvit.typing import Tensor


@keras.saving.register_keras_serializable("keras_binaryvit")
class SoftTargetCrossEntropy(keras.losses.Loss):
    """The cross-entropy of the student's distribution under the teacher's.

    With logits t of the teacher and s of the student, and the temperature T,

        loss = -T^2 sum_c softmax(t / T)_c log softmax(s / T)_c

    and the mean over the batch. T^2 keeps the size of the gradient where T grows. No gradient goes to the teacher.
    Everything is computed in float32.

    Args:
        temperature: T; 1, the paper's, uses the logits as they are.
        **kwargs: `reduction` and `name`, as in `keras.losses.Loss`.

    Shapes: `loss(teacher_logits, student_logits)`, both `(batch, classes)`.

    Raises:
        ValueError: The temperature isn't positive, or the logits differ in shape.

    Source: BinaryViT, arXiv 2306.16678, and the authors' code (T = 1); Hinton et al., arXiv 1503.02531, section 2.
    """

    def __init__(self, temperature: float = 1.0, **kwargs: Any):
        if not temperature > 0:
            raise ValueError(f"The temperature must be positive. Received: temperature={temperature}")
        super().__init__(dtype="float32", **{"name": "soft_cross_entropy", **kwargs})
        self.temperature = temperature

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if len(y_true.shape) != len(y_pred.shape) or y_true.shape[-1] != y_pred.shape[-1]:
            raise ValueError(
                "The teacher and the student must have logits for the same classes. Received: teacher logits of shape "
                f"{tuple(y_true.shape)}, student logits of shape {tuple(y_pred.shape)}. Give the student as many "
                "classes, or pick the student's among the teacher's with AdaptedTeacher(classes=...)."
            )
        targets = ops.softmax(ops.stop_gradient(y_true) / self.temperature, axis=-1)
        log_probabilities = ops.log_softmax(y_pred / self.temperature, axis=-1)
        return -(self.temperature**2) * ops.sum(targets * log_probabilities, axis=-1)

    def get_config(self) -> dict:
        return {**super().get_config(), "temperature": self.temperature}
