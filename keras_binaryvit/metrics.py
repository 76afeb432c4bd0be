"""Metrics that only make sense for quantized values, with Larq's names."""

from typing import Any

import keras
from keras import ops

from keras_binaryvit.typing import Tensor


@keras.saving.register_keras_serializable("keras_binaryvit")
class FlipRatio(keras.metrics.Metric):
    """The mean share of values that changed from one update to the next, between 0 and 1.

    Example:

    ```python
    metric = FlipRatio()
    metric.update_state([1, 1])
    metric.update_state([2, 2])  # all changed: 1
    metric.update_state([1, 2])  # half: 0.5
    float(metric.result())  # 0.75
    ```

    Args:
        values_dtype: What the values are compared as.
        name: Name of the metric.
        dtype: Of the running mean.
    """

    def __init__(self, values_dtype: str = "int8", name: str = "flip_ratio", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)
        self.values_dtype = values_dtype
        self._previous: keras.Variable | None = None
        self.total = self.add_variable((), "zeros", name="total")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, values: Tensor, sample_weight: Tensor | None = None) -> None:
        """Compares `values`, a tensor of the same shape at every update, with those before."""
        values = ops.cast(values, self.values_dtype)
        if self._previous is None:
            self._previous = self.add_variable(values.shape, "zeros", dtype=self.values_dtype, name="previous_values")
        if tuple(values.shape) != tuple(self._previous.shape):
            raise ValueError(
                f"FlipRatio follows one tensor of shape {tuple(self._previous.shape)}. Received: {tuple(values.shape)}"
            )
        changed = ops.mean(ops.cast(ops.not_equal(self._previous, values), self.dtype))
        self.total.assign_add(changed * ops.sign(self.count))  # the first update has nothing to compare with
        self.count.assign_add(1)
        self._previous.assign(values)

    def result(self) -> Tensor:
        """Returns the mean so far, 0 before the second update."""
        return ops.divide_no_nan(self.total, self.count - 1)

    def reset_state(self) -> None:
        """Forgets the mean, not the values: the next update still compares with the last ones."""
        self.total.assign(0)
        self.count.assign(0)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {"values_dtype": self.values_dtype, "name": self.name, "dtype": self.dtype}
