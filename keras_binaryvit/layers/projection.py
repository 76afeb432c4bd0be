"""BinaryProjection: the binary dense layer with the real-valued shortcut around it."""

from typing import Any

import keras
from keras import ops

from keras_binaryvit.layers.activation import RPReLU, Shift
from keras_binaryvit.layers.binary_kernels import BinaryKernels, initial_kernel
from keras_binaryvit.layers.normalization import BatchNorm
from keras_binaryvit.layers.quantized import QuantDense
from keras_binaryvit.layers.validation import positive_integer
from keras_binaryvit.typing import QuantizerLike, Shape, Tensor


@keras.saving.register_keras_serializable("keras_binaryvit")
class BinaryProjection(BinaryKernels):
    """`RPReLU(BN(Dense_b(sign(x + shift))) + shortcut(x))`, the unit that BinaryViT's blocks are made of.

    The shortcut has no parameters. With as many units as channels it is x. With E times as many it is E whole copies of
    x side by side: unit j gets channel j mod C. With a fraction 1/E it is the mean of E adjacent channels. The last two
    don't invert each other.

    Args:
        units: Size of the last axis of the output: the channels, a multiple or a divisor of them.
        input_quantizer: Of the shifted inputs: whatever `quantizers.get` takes.
        kernel_quantizer: Of the kernel: whatever `quantizers.get` takes.
        **kwargs: `kernel_initializer`, `kernel_regularizer` and `kernel_constraint`, as in `BinaryKernels`, and the
            arguments of `keras.layers.Layer`.

    Shapes: `(batch, ..., channels)` gives `(batch, ..., units)`.

    Raises:
        ValueError: The channels neither divide nor are divided by `units`.

    Source: BinaryViT, arXiv 2306.16678, sections 2 and 3, and the authors' code.
    """

    def __init__(
        self,
        units: int,
        input_quantizer: QuantizerLike = "approx_sign",
        kernel_quantizer: QuantizerLike = "centered_scaled_sign",
        **kwargs: Any,
    ):
        super().__init__(input_quantizer, kernel_quantizer, **kwargs)
        self.units = positive_integer("units", units)
        self.shift = Shift(dtype=self.dtype_policy, name="shift")
        self.dense = QuantDense(
            units,
            use_bias=False,
            **self.kernel_arguments() | {"kernel_initializer": initial_kernel(self.kernel_initializer)},
            name="dense",
        )
        self.dense.warns_unclipped = False
        self.norm = BatchNorm(dtype=self.dtype_policy, name="norm")
        self.activation = RPReLU(dtype=self.dtype_policy, name="activation")

    def build(self, input_shape: Shape) -> None:
        channels = positive_integer("channels", input_shape[-1])
        if channels % self.units and self.units % channels:
            raise ValueError(
                "The shortcut of BinaryProjection needs units that are a multiple or a divisor of the channels. "
                f"Received: units={self.units}, channels={channels} (input shape {tuple(input_shape)})"
            )
        output_shape = self.compute_output_shape(input_shape)
        self.shift.build(input_shape)
        self.dense.build(input_shape)
        self.norm.build(output_shape)
        self.activation.build(output_shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        outputs = self.norm(self.dense(self.shift(inputs)), training=training)
        return self.activation(self._add_shortcut(outputs, inputs))

    def _add_shortcut(self, outputs, inputs):
        channels = inputs.shape[-1]
        if self.units == channels:
            return outputs + inputs
        *leading, _ = ops.shape(inputs)
        if self.units < channels:
            groups = ops.reshape(inputs, (*leading, self.units, channels // self.units))
            return outputs + ops.mean(groups, axis=-1)
        copies = self.units // channels
        if keras.backend.backend() == "jax":
            # XLA's loop over a broadcast divides for the index of each value, which takes longer than to write copies.
            return outputs + ops.concatenate([inputs] * copies, axis=-1)
        outputs = ops.reshape(outputs, (*leading, copies, channels))
        return ops.reshape(outputs + ops.expand_dims(inputs, -2), (*leading, self.units))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict:
        return {**super().get_config(), "units": self.units}
