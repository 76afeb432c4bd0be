"""ResidualAffine: the per-channel scale and shift before a residual addition."""

from typing import Any

import keras

from keras_binaryvit.layers import channelwise
from keras_binaryvit.typing import Shape, Tensor


@keras.saving.register_keras_serializable("keras_binaryvit")
class ResidualAffine(keras.layers.Layer):
    """Scales and shifts each channel (last axis): `scale * x + shift`.

    Args:
        initial_scale: The scale to start from.

    Shapes: any, channels last; the same comes out.

    Source: BinaryViT, arXiv 2306.16678, section 3.3 ("LayerScale" in the authors' code).
    """

    def __init__(self, initial_scale: float = 0.1, **kwargs: Any):
        super().__init__(**kwargs)
        self.initial_scale = initial_scale

    def build(self, input_shape: Shape) -> None:
        shape = (input_shape[-1],)
        initializer = keras.initializers.Constant(self.initial_scale)
        self.scale = self.add_weight(name="scale", shape=shape, initializer=initializer)
        self.shift = self.add_weight(name="shift", shape=shape, initializer="zeros")

    def call(self, inputs: Tensor) -> Tensor:
        return channelwise.affine(inputs, self.scale, self.shift)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "initial_scale": self.initial_scale}
