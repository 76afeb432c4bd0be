"""BinaryFeedForward: two binary projections, wide and back."""

from typing import Any

import keras

from keras_binaryvit.layers.binary_kernels import BinaryKernels
from keras_binaryvit.layers.projection import BinaryProjection
from keras_binaryvit.layers.validation import positive_integer
from keras_binaryvit.typing import QuantizerLike, Shape, Tensor


@keras.saving.register_keras_serializable("keras_binaryvit")
class BinaryFeedForward(BinaryKernels):
    """The feed-forward part of a block: a projection to `expansion` times the channels and one back.

    Args:
        expansion: How many times wider the hidden layer is.
        input_quantizer: Of both projections: whatever `quantizers.get` takes.
        kernel_quantizer: Of both projections: whatever `quantizers.get` takes.
        **kwargs: `kernel_initializer`, `kernel_regularizer` and `kernel_constraint`, as in `BinaryKernels`, and the
            arguments of `keras.layers.Layer`.

    Shapes: `(batch, ..., channels)`, and the same comes out.

    Source: BinaryViT, arXiv 2306.16678, section 2.
    """

    def __init__(
        self,
        expansion: int = 4,
        input_quantizer: QuantizerLike = "approx_sign",
        kernel_quantizer: QuantizerLike = "centered_scaled_sign",
        **kwargs: Any,
    ):
        super().__init__(input_quantizer, kernel_quantizer, **kwargs)
        self.expansion = positive_integer("expansion", expansion)

    def build(self, input_shape: Shape) -> None:
        channels = positive_integer("channels", input_shape[-1])
        self.expand = BinaryProjection(channels * self.expansion, **self.kernel_arguments(), name="expand")
        self.reduce = BinaryProjection(channels, **self.kernel_arguments(), name="reduce")
        self.expand.build(input_shape)
        self.reduce.build(self.expand.compute_output_shape(input_shape))

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return self.reduce(self.expand(inputs, training=training), training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "expansion": self.expansion}
