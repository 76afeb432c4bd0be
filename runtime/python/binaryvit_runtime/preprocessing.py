"""Preprocessor: from an image to a model's input, as in training."""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_INTERPOLATIONS = ("bilinear", "bicubic")
_MODES = {1: "L", 3: "RGB"}


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """What `ImagePreprocessor` of keras_binaryvit does to an image before a model sees it, in Pillow and NumPy.

    The largest centered part with the aspect ratio of `resize_size` is resized to it with antialiasing, what the model
    takes is cropped in its center, and each channel becomes `(pixel / 255 - mean) / std`, with the values of training
    but for the rounding of float32.

    Attributes:
        mean: Mean of each channel, on the scale 0 to 1: one value for grayscale images, three for RGB.
        std: Standard deviation of each channel, on the same scale.
        resize_size: `(height, width)` to resize to; a number for the short side of what has the model's aspect ratio;
            `None` for what the model takes.
        interpolation: `"bilinear"` or `"bicubic"`.

    Raises:
        ValueError: Any of them is out of its range.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_size: tuple[int, int] | int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or not all(_is_finite(value) for value in values):
                raise ValueError(f"{name} must be a finite number for each channel. Received: {str(values)[:100]}")
            object.__setattr__(self, name, tuple(float(value) for value in values))
        if len(self.mean) != len(self.std) or len(self.mean) not in _MODES or min(self.std) <= 0:
            raise ValueError(
                "mean and std must have a value for each of 1 or 3 channels, and std be positive. "
                f"Received: mean={self.mean[:5]}, std={self.std[:5]}"
            )
        size = self.resize_size
        if isinstance(size, list):
            object.__setattr__(self, "resize_size", tuple(size))
        sides = size if isinstance(size, (tuple, list)) else (size, size)
        if size is not None and not (len(sides) == 2 and all(_is_side(side) for side in sides)):
            raise ValueError(f"resize_size must be 1 to 10,000 pixels, or two such. Received: {str(size)[:50]}")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation must be bilinear or bicubic. Received: {str(self.interpolation)[:50]!r}")

    def __call__(self, image: str | os.PathLike | Image | np.ndarray, height: int, width: int) -> np.ndarray:
        """Returns the input of a model for one image.

        Args:
            image: Path of a file that Pillow reads, an image of Pillow's, or uint8 `(height, width)` or
                `(height, width, channels)`, grayscale or RGB. EXIF orientation is applied.
            height: Rows that the model takes.
            width: Columns that the model takes.

        Returns:
            `(height, width, channels)`, float32.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no image, damaged, or has more than 8 bits per channel; or `resize_size` is smaller than
                what the model takes.
        """
        from PIL import Image

        rows, columns = self._resized(height, width)
        if rows < height or columns < width:
            raise ValueError(
                f"The model takes {height} x {width} pixels, more than resize_size={self.resize_size} gives."
            )
        picture = _open(image).convert(_MODES[len(self.mean)])
        part_height = max(min(picture.height, picture.width * rows // columns), 1)
        part_width = max(min(picture.width, picture.height * columns // rows), 1)
        channels = _centered(picture, part_height, part_width).split()
        if channels[0].size != (columns, rows):
            method = getattr(Image.Resampling, self.interpolation.upper())
            # As floats, which Pillow doesn't round to whole levels.
            channels = [channel.convert("F").resize((columns, rows), method) for channel in channels]
        pixels = np.stack([np.asarray(_centered(channel, height, width), np.float32) for channel in channels], axis=-1)
        pixels = np.clip(pixels, 0, 255)  # bicubic interpolation overshoots at edges
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return pixels * (1 / (255 * std)) - mean / std

    def _resized(self, height, width):
        if isinstance(self.resize_size, tuple):
            return self.resize_size
        short = min(height, width)
        resized = short if self.resize_size is None else self.resize_size
        return resized * height // short, resized * width // short


def _is_finite(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_side(value):
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10_000


def _centered(picture, height, width):
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _open(image):
    """Returns an upright image of Pillow's, with its pixels read."""
    from PIL import Image, ImageOps

    if isinstance(image, np.ndarray):
        channels = image.shape[2:] or (1,)
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels[0] not in _MODES or image.size == 0:
            raise ValueError(
                "An image must be uint8 (height, width), or (height, width, channels) with 1 or 3 channels. "
                f"Received: {image.dtype} {image.shape}"
            )
        image = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2:] == (1,) else image))
    elif not isinstance(image, Image.Image):
        path = os.fspath(image)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"There is no image file {path!r}.")
        try:
            image = Image.open(path)
            image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path!r} can't be read as an image: {error}") from error
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"The image has more than 8 bits per channel (mode {image.mode}); save it with 8 bits.")
    return ImageOps.exif_transpose(image)
