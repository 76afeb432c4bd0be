"""BatchNorm: batch normalization with PyTorch's running variance."""

from typing import Any

import keras
from keras import ops

from keras_binaryvit.layers.channelwise import batch_means, channel_sum, normalize, precise
from keras_binaryvit.typing import Tensor


@keras.saving.register_keras_serializable("keras_binaryvit")
class BatchNorm(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` with the authors' constants and PyTorch's running variance.

    The running variance follows the unbiased variance of a batch, n / (n - 1) times the biased one that normalizes it;
    Keras' own layer follows the biased one. The inference model sees the difference where a batch has few positions.

    On several devices the statistics are those of the global batch, as in the paper's recipe, whatever distributes it:
    `keras.distribution` or `tf.distribute`.

    Args:
        momentum: Share of the running statistics that a step keeps.
        epsilon: Added to the variance.
        **kwargs: The other arguments of `keras.layers.BatchNormalization`, but for those below.

    Raises:
        ValueError: `axis` isn't the last one, or `center`, `scale`, `renorm` or `synchronized` differ from the default.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)
        if self.axis != -1 or not (self.center and self.scale) or self.renorm or self.synchronized:
            raise ValueError(
                "BatchNorm normalizes the last axis, with center and scale, without renorm; synchronized keeps its "
                "default, as the statistics are those of the global batch anyway. "
                f"Received: axis={self.axis}, center={self.center}, scale={self.scale}, renorm={self.renorm}, "
                f"synchronized={self.synchronized}"
            )

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        x = precise(inputs)
        gamma, beta, moving_mean, moving_variance = map(
            precise, (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        )
        if not (training and self.trainable):
            # Keras' own layer multiplies with rsqrt, which processors round differently; signs would depend on it.
            scale = gamma / self._deviation(moving_variance)
            outputs = x * scale + (beta - moving_mean * scale)
            return ops.cast(outputs, self.compute_dtype)
        detached = ops.stop_gradient(x)
        (mean,), count = batch_means([channel_sum(detached)], x)
        (variance,), _ = batch_means([channel_sum(ops.square(detached - mean))], x)
        outputs = normalize(x, mean, self._deviation(variance), gamma, beta)

        # Python's maximum keeps a count that is a number one.
        unbiased = variance * (count / (max(count - 1, 1) if isinstance(count, float) else ops.maximum(count - 1, 1)))
        keep = self.momentum
        self.moving_mean.assign(moving_mean * keep + mean * (1 - keep))
        self.moving_variance.assign(moving_variance * keep + unbiased * (1 - keep))
        return ops.cast(outputs, self.compute_dtype)

    def _deviation(self, variance: Tensor) -> Tensor:
        variance = variance + self.epsilon
        # On some processors PyTorch's square root of float32 isn't correctly rounded; that of float64 is, as float32.
        exact = keras.backend.backend() == "torch" and keras.backend.standardize_dtype(variance.dtype) == "float32"
        deviation = ops.cast(ops.sqrt(ops.cast(variance, "float64")), "float32") if exact else ops.sqrt(variance)
        # TensorFlow and XLA make a division by a square root a product with rsqrt, but not one by a maximum.
        return ops.maximum(deviation, 1e-30)
