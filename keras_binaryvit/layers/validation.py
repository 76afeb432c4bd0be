"""Checks of arguments and shapes that several layers share; each names the value that is wrong."""

import operator
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_binaryvit.typing import Shape, Tensor


def positive_integer(name: str, value: Any) -> int:
    """Returns `value` as an `int`.

    Raises:
        ValueError: It isn't a positive integer.
    """
    try:
        integer = operator.index(value)
    except TypeError:
        integer = 0
    if integer < 1 or isinstance(value, bool):
        raise ValueError(f"{name} must be a positive integer. Received: {name}={value!r}")
    return integer


def map_shape(layer: keras.Layer, input_shape: Shape) -> tuple[int, int, int]:
    """Returns height, width and channels of the map that `layer` is built for.

    Raises:
        ValueError: It isn't a map, or one of these is unknown.
    """
    if len(input_shape) != 4 or None in input_shape[1:]:
        raise ValueError(
            f"{type(layer).__name__} takes maps of a known shape (batch, height, width, channels). "
            f"Received: input shape {tuple(input_shape)}"
        )
    return tuple(input_shape[1:])


def with_known_sides(x: Tensor, shape: Shape) -> Tensor:
    """Returns `x` with the `shape` (height, width, channels) that its layer is built for, where TensorFlow doesn't know
    its sides, as those of images from a generator."""
    return ops.reshape(x, (-1, *shape)) if None in x.shape[1:] else x


def checked_image_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns `image_shape` as `(height, width, channels)`.

    Raises:
        ValueError: It isn't three positive integers.
    """
    if len(tuple(image_shape)) != 3:
        raise ValueError(f"image_shape is (height, width, channels). Received: image_shape={image_shape}")
    height, width, channels = (positive_integer("image_shape", side) for side in image_shape)
    return height, width, channels
