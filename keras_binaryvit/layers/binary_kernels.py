"""BinaryKernels: what a layer that is made of binary ones tells all their kernels."""

from collections.abc import Callable
from typing import Any

import keras

from keras_binaryvit import constraints, quantizers
from keras_binaryvit.typing import QuantizerLike


class BinaryKernels(keras.layers.Layer):
    """A layer that gives the layers inside it the same quantizers and the same arguments of their kernels.

    Args:
        input_quantizer: Of their inputs: any identifier that `quantizers.get` accepts.
        kernel_quantizer: Of their kernels: any identifier that `quantizers.get` accepts.
        kernel_initializer: Of their kernels, each from a copy; `None` for U(+-1 / sqrt(fan_in)), what the authors'
            start from.
        kernel_regularizer: Of their kernels.
        kernel_constraint: Of their kernels, `"weight_clip"` for example. The authors' have none.
        **kwargs: Those of `keras.layers.Layer`.
    """

    def __init__(
        self,
        input_quantizer: QuantizerLike,
        kernel_quantizer: QuantizerLike,
        kernel_initializer: str | dict | Callable | None = None,
        kernel_regularizer: str | dict | Callable | None = None,
        kernel_constraint: str | dict | Callable | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.input_quantizer = quantizers.get(input_quantizer)
        self.kernel_quantizer = quantizers.get(kernel_quantizer)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)

    def kernel_arguments(self) -> dict[str, Any]:
        """Returns the arguments of a layer inside this one: a `BinaryKernels` or a `QuantizedKernel`."""
        return {
            "input_quantizer": self.input_quantizer,
            "kernel_quantizer": self.kernel_quantizer,
            "kernel_initializer": self.kernel_initializer,
            "kernel_regularizer": self.kernel_regularizer,
            "kernel_constraint": self.kernel_constraint,
            "dtype": self.dtype_policy,
        }

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "input_quantizer": quantizers.serialize(self.input_quantizer),
            "kernel_quantizer": quantizers.serialize(self.kernel_quantizer),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
        }


def initial_kernel(initializer: Callable | None) -> Callable:
    """Returns what a kernel starts from: a copy of `initializer`, which would give each kernel the same values, or
    U(+-1 / sqrt(fan_in))."""
    if initializer is None:
        return keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")
    return initializer.clone() if isinstance(initializer, keras.initializers.Initializer) else initializer
