"""Average pooling: of squares that don't overlap, and MultiBranchAveragePooling, over several windows."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_binaryvit.layers.affine import ResidualAffine
from keras_binaryvit.layers.channelwise import custom_gradient
from keras_binaryvit.layers.validation import map_shape, with_known_sides
from keras_binaryvit.typing import Shape, Tensor


def average_pool(x: Tensor, size: int) -> Tensor:
    """Returns the mean of each square of `size` x `size` positions of the map `x`; `size` must divide its sides."""

    @custom_gradient
    def pool(x):
        def gradient(upstream):
            # Compilers write it as a window sliding over a map of mostly zeros, many times slower than the copies.
            _, height, width, channels = upstream.shape
            squares = ops.reshape(upstream / size**2, (-1, height, 1, width, 1, channels))
            copies = ops.tile(squares, (1, 1, size, 1, size, 1))
            return (ops.reshape(copies, (-1, height * size, width * size, channels)),)

        return ops.average_pool(x, size, size, "valid", data_format="channels_last"), gradient

    return pool(x)


@keras.saving.register_keras_serializable("keras_binaryvit")
class MultiBranchAveragePooling(keras.layers.Layer):
    """The sum of several average poolings, each followed by its own per-channel scale and shift.

    Every pooling has stride 1 and keeps the map's size; the zeros around the map count in the mean, so a border of
    ones gives 0.6, 0.8, 1 with a window of 5. The scales start at 0: the branches fade in.

    Args:
        windows: `(height, width)` of each branch's window; odd numbers.

    Shapes: `(batch, height, width, channels)`, and the same comes out.

    Source: BinaryViT, arXiv 2306.16678, section 3.2.
    """

    def __init__(self, windows: Sequence[tuple[int, int]] = ((3, 1), (1, 3), (5, 1), (1, 5)), **kwargs: Any):
        super().__init__(**kwargs)
        self.windows = tuple(tuple(window) for window in windows)
        for window in self.windows:
            if len(window) != 2 or any(not isinstance(size, int) or size < 1 or size % 2 == 0 for size in window):
                raise ValueError(f"A window is (height, width) of odd positive integers. Received: windows={windows}")
        self.affines = [ResidualAffine(0.0, dtype=self.dtype_policy, name=f"affine_{h}x{w}") for h, w in self.windows]

    def build(self, input_shape: Shape) -> None:
        self._shape = map_shape(self, input_shape)
        for affine in self.affines:
            affine.build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        inputs = with_known_sides(inputs, self._shape)
        outputs = 0
        for (height, width), affine in zip(self.windows, self.affines, strict=True):
            # Padded by hand: Keras' own "same" padding leaves the zeros out of the mean.
            paddings = ((0, 0), (height // 2, height // 2), (width // 2, width // 2), (0, 0))
            padded = ops.pad(inputs, paddings)
            pooled = ops.average_pool(padded, (height, width), 1, "valid", data_format="channels_last")
            outputs = outputs + affine(pooled)
        return outputs

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "windows": self.windows}
