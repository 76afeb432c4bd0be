"""Per-channel functions with gradients written out, because their sums are what training spends its time in.

A gradient to a per-channel parameter is a sum over all positions. XLA for CPUs turns the one that automatic
differentiation writes into a strided loop; as a product with a row of ones it is several times faster. On TensorFlow
two short sums are faster than one long sum, and closer to the true sum.
"""

import math
from collections.abc import Callable

import keras
from keras import ops

from keras_binaryvit.typing import Tensor


def precise(x: Tensor) -> Tensor:
    """Returns `x` in a precision for statistics: float64 as it is, any other in float32."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    return x if dtype in ("float32", "float64") else ops.cast(x, "float32")


def channel_sum(x: Tensor) -> Tensor:
    """Returns the sum of `x`, `(..., channels)`, over all axes but the last, in float32 or float64."""
    x = precise(x)
    if len(x.shape) > 2:
        # Row by row first: many short sums lose less to rounding than a long one.
        if keras.backend.backend() == "jax":
            # The ones have all of x's leading axes: XLA turns a product with a broadcast matrix into one product with
            # a transposed copy of x.
            x = ops.matmul(ops.ones((*ops.shape(x)[:-2], 1, x.shape[-2]), x.dtype), x)
        else:
            x = ops.sum(x, axis=-2)
    return ops.sum(x, axis=tuple(range(len(x.shape) - 1)))


def batch_means(sums: list[Tensor], x: Tensor) -> tuple[list[Tensor], Tensor | float]:
    """Returns the means of per-channel quantities over the global batch, and its number of positions.

    `sums` are theirs over all positions of `x`, `(..., channels)`. In `keras.distribution` that is the global batch. In
    a `tf.distribute` strategy it is the part of one replica, and the replicas' sums and positions are added up.
    """
    # A number where the shape is known: each operation less starts training earlier.
    *leading, _ = x.shape
    count = ops.cast(ops.size(x), x.dtype) / x.shape[-1] if None in leading else float(math.prod(leading))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            # In one round of communication.
            *sums, count = replica.all_reduce(tf.distribute.ReduceOp.SUM, [*sums, tf.cast(count, sums[0].dtype)])
    return [total / count for total in sums], count


def custom_gradient(function: Callable[..., tuple[Tensor, Callable]]) -> Callable[..., Tensor]:
    """`ops.custom_gradient` for a `function` that returns its value and `gradient(upstream)`; takes variables too.

    A gradient may be `None`: then none flows to that argument.
    """

    @ops.custom_gradient
    def of_tensors(*args):
        value, gradient = function(*args)

        def grad(*upstreams, upstream=None):
            gradients = gradient(upstreams[0] if upstream is None else upstream)
            return tuple(_like(g, a) for g, a in zip(gradients, args, strict=True))

        return value, grad

    def of_anything(*args):
        tensors = [ops.convert_to_tensor(a) for a in args]
        # TensorFlow's custom gradients take no variables; a cast reads them.
        return of_tensors(*(ops.cast(a, a.dtype) if hasattr(a, "assign") else a for a in tensors))

    return of_anything


def _like(gradient, x):
    if gradient is not None:
        return ops.cast(gradient, x.dtype)
    return ops.zeros_like(x) if keras.backend.backend() == "jax" else None  # JAX takes no None


@custom_gradient
def add(x: Tensor, shift: Tensor) -> tuple[Tensor, Callable]:
    """Returns `x + shift`."""
    return x + shift, lambda upstream: (upstream, channel_sum(upstream))


@custom_gradient
def affine(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Callable]:
    """Returns `x * scale + shift`."""

    def gradient(upstream):
        return upstream * scale, channel_sum(upstream * x), channel_sum(upstream)

    return x * scale + shift, gradient


@custom_gradient
def rprelu(x: Tensor, input_shift: Tensor, slope: Tensor, output_shift: Tensor) -> tuple[Tensor, Callable]:
    """Returns `PReLU(x - input_shift) + output_shift` with `slope` for values below 0."""

    def gradient(upstream):
        shifted = x - input_shift
        to_x = ops.where(shifted > 0, upstream, upstream * slope)
        to_slope = channel_sum(upstream * ops.minimum(shifted, 0))
        return to_x, -channel_sum(to_x), to_slope, channel_sum(upstream)

    shifted = x - input_shift
    return ops.where(shifted > 0, shifted, shifted * slope) + output_shift, gradient


@custom_gradient
def normalize(x: Tensor, mean: Tensor, deviation: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Callable]:
    """Returns `(x - mean) / deviation * gamma + beta` for the global batch's `mean` and standard `deviation` of `x`.

    The gradient to `x` counts its ways through the mean and the deviation; these two get none. Those to `gamma` and
    `beta` are sums over `x` alone, which the optimizer adds up over the replicas.
    """

    def gradient(upstream):
        centered = x - mean
        to_beta = channel_sum(upstream)
        to_gamma = channel_sum(upstream * centered) / deviation
        (mean_to_beta, mean_to_gamma), _ = batch_means([to_beta, to_gamma], x)
        slope = gamma / deviation
        to_x = upstream * slope - (slope * mean_to_beta + centered * (slope * mean_to_gamma / deviation))
        return to_x, None, None, to_gamma, to_beta

    return (x - mean) * (gamma / deviation) + beta, gradient
