"""ImagePreprocessor: from pixels to what a model takes, the same in training, evaluation and deployment."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_binaryvit.layers.validation import positive_integer
from keras_binaryvit.typing import Shape, Tensor

_INTERPOLATIONS = ("bilinear", "bicubic")


@keras.saving.register_keras_serializable("keras_binaryvit")
class ImagePreprocessor(keras.layers.Pipeline):
    """Resizes, crops and normalizes images.

    The largest centered part with the aspect ratio of `resize_size` is resized to it with antialiasing, `image_size` is
    cropped in its center, and each channel becomes `(pixel / 255 - mean) / std`. It works eagerly and in `tf.data`, on
    every backend:

    ```python
    preprocessor = ImagePreprocessor((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize_size=256)
    dataset = dataset.map(lambda image, label: (preprocessor(image), label))
    ```

    Args:
        image_size: `(height, width)` that the model takes, or one number for both.
        mean: Mean of each channel, on the scale 0 to 1: one value for grayscale images, three for RGB.
        std: Standard deviation of each channel, on the same scale.
        resize_size: `(height, width)` to resize to, or one number for both; `None` for `image_size`.
        interpolation: `"bilinear"` or `"bicubic"`.
        name: Name of the layer.

    Shapes: `(height, width, channels)` or `(batch, height, width, channels)`, uint8 or float in 0 to 255, channels
    last, give the same with `image_size`, float32.

    Raises:
        ValueError: An argument is out of range; or the images given outside of a graph are floats that aren't in 0 to
            255, as images that are normalized already.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        resize_size: int | Sequence[int] | None = None,
        interpolation: str = "bilinear",
        name: str | None = "preprocessor",
    ):
        size = _size("image_size", image_size)
        resized = size if resize_size is None else _size("resize_size", resize_size)
        mean, std = _constants("mean", mean), _constants("std", std)
        if len(mean) != len(std) or len(mean) not in (1, 3) or min(std) <= 0:
            raise ValueError(
                "mean and std must have a value for each of 1 or 3 channels, and std be positive. "
                f"Received: mean={mean}, std={std}"
            )
        if resized[0] < size[0] or resized[1] < size[1]:
            raise ValueError(
                f"resize_size must be at least image_size. Received: resize_size={resized}, image_size={size}"
            )
        if interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation must be 'bilinear' or 'bicubic'. Received: {interpolation!r}")
        common = {"data_format": "channels_last", "dtype": "float32"}
        deviation = np.asarray(std, np.float32)
        scale, offset = 1 / (255 * deviation), -np.asarray(mean, np.float32) / deviation
        super().__init__(
            [
                # Floats from here on: of integers Keras makes integers again where it resizes them eagerly.
                keras.layers.Rescaling(1.0, dtype="float32"),
                keras.layers.Resizing(*resized, interpolation, crop_to_aspect_ratio=True, antialias=True, **common),
                keras.layers.CenterCrop(*size, **common),
                keras.layers.Rescaling(scale.tolist(), offset.tolist(), dtype="float32"),
            ],
            name=name,
        )
        self.image_size = size
        self.mean = mean
        self.std = std
        self.resize_size = resized
        self.interpolation = interpolation

    def build(self, input_shape: Shape) -> None:
        """Has nothing to build."""

    def call(self, images: Tensor) -> Tensor:
        return self.normalize(self.resize(images))

    def resize(self, images: Tensor) -> Tensor:
        """Returns images resized and cropped, not normalized yet: float32 pixels in 0 to 255."""
        _check_pixels(images)
        if images.shape[-1] is not None and images.shape[-1] != len(self.mean):
            raise ValueError(
                f"The preprocessor takes images with {len(self.mean)} channels, channels last. "
                f"Received: shape {tuple(images.shape)}"
            )
        for layer in self.layers[:-1]:
            images = layer(images)
        if self.interpolation == "bicubic":  # which overshoots at edges
            images = _module_of(images).clip(images, 0, 255)
        return images

    def normalize(self, images: Tensor) -> Tensor:
        """Returns images of the right size, of pixels in 0 to 255, normalized."""
        return self.layers[-1](images)

    def denormalize(self, images: Any) -> np.ndarray:
        """Returns normalized images as uint8 pixels to look at."""
        values = keras.ops.convert_to_numpy(images)
        pixels = (values * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)) * 255
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-3], *self.image_size, input_shape[-1])

    def to_metadata(self) -> dict:
        """Returns what a `.tflite` file says of its images."""
        names = ("mean", "std", "resize_size", "interpolation")
        return {name: getattr(self, name) for name in names}

    def get_config(self) -> dict:
        return {
            "image_size": self.image_size,
            "mean": self.mean,
            "std": self.std,
            "resize_size": self.resize_size,
            "interpolation": self.interpolation,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict) -> "ImagePreprocessor":
        return cls(**config)


def _module_of(x):
    """Returns the module with the operations on `x`: in `tf.data` TensorFlow's, whatever the backend."""
    if type(x).__module__.startswith("tensorflow"):
        import tensorflow as tf

        return tf.experimental.numpy
    return keras.ops


def _size(argument: str, size: int | Sequence[int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"{argument} must be (height, width) or one number. Received: {argument}={size}")
    return positive_integer(argument, sides[0]), positive_integer(argument, sides[1])


def _constants(argument, values):
    values = tuple(values)
    if not all(isinstance(value, numbers.Real) and math.isfinite(value) for value in values):
        raise ValueError(f"{argument} must be a finite number for each channel. Received: {argument}={values}")
    return tuple(float(value) for value in values)


def _check_pixels(images):
    if "int" in keras.backend.standardize_dtype(images.dtype):
        return
    try:
        values = np.asarray(images)
    except (TypeError, ValueError, NotImplementedError, RuntimeError):
        return  # in a graph there are no values yet
    if values.size and not (values.min() >= 0 and values.max() <= 255):
        raise ValueError(
            "The preprocessor takes pixels, float in 0 to 255 or uint8. Were these images normalized already? "
            f"Received: values from {values.min():.3g} to {values.max():.3g}"
        )
