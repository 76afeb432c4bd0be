"""Shift and RPReLU: learnable thresholds before a sign and around a slope."""

from typing import Any

import keras

from keras_binaryvit.layers import channelwise
from keras_binaryvit.typing import Shape, Tensor


@keras.saving.register_keras_serializable("keras_binaryvit")
class Shift(keras.layers.Layer):
    """Adds a learnable constant to each channel (last axis), the threshold of the sign that follows.

    Shapes: any, channels last; the same comes out.

    Source: Liu et al. (ReActNet), arXiv 2003.03488, section 4.2.
    """

    def build(self, input_shape: Shape) -> None:
        self.shift = self.add_weight(name="shift", shape=(input_shape[-1],), initializer="zeros")

    def call(self, inputs: Tensor) -> Tensor:
        return channelwise.add(inputs, self.shift)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


@keras.saving.register_keras_serializable("keras_binaryvit")
class RPReLU(keras.layers.Layer):
    """PReLU with a learnable shift before and after: `PReLU(x - input_shift) + output_shift`, for each channel.

    Args:
        initial_slope: The slope for negative values to start from.

    Shapes: any, channels last; the same comes out.

    Source: Liu et al. (ReActNet), arXiv 2003.03488, eq. 5.
    """

    def __init__(self, initial_slope: float = 0.25, **kwargs: Any):
        super().__init__(**kwargs)
        self.initial_slope = initial_slope

    def build(self, input_shape: Shape) -> None:
        shape = (input_shape[-1],)
        self.input_shift = self.add_weight(name="input_shift", shape=shape, initializer="zeros")
        self.slope = self.add_weight(
            name="slope", shape=shape, initializer=keras.initializers.Constant(self.initial_slope)
        )
        self.output_shift = self.add_weight(name="output_shift", shape=shape, initializer="zeros")

    def call(self, inputs: Tensor) -> Tensor:
        return channelwise.rprelu(inputs, self.input_shift, self.slope, self.output_shift)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "initial_slope": self.initial_slope}
