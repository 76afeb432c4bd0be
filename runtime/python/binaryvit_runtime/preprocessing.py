"""Preprocessing: from an image to a model's input, as in training."""

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
_LARGEST_ASPECT = 16  # beyond which next to nothing of an image would be seen, and resizing take gigabytes
_MODES = {1: "L", 3: "RGB"}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before a model sees it.

    The image is resized with antialiasing, cropped in the centre to what the model takes, and normalised:
    (image / 255 - mean) / std.

    Attributes:
        mean: Of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        resize: Pixels to make of the short side; `None` means as many as the crop has.
        interpolation: `"bilinear"` or `"bicubic"`.

    Raises:
        ValueError: Any of them is out of its range.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
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
        size = self.resize
        if size is not None and not (isinstance(size, numbers.Integral) and 1 <= size <= 10_000):
            raise ValueError(f"resize must be 1 to 10,000 pixels. Received: {str(size)[:50]}")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation must be bilinear or bicubic. Received: {str(self.interpolation)[:50]!r}")

    def __call__(self, image: str | os.PathLike | Image | np.ndarray, height: int, width: int) -> np.ndarray:
        """Returns the input of a model for one image.

        Args:
            image: Path of a file that Pillow reads, an image of Pillow's, or uint8 `(height, width)` or
                `(height, width, channels)`, grey or RGB. A file's orientation tag is heeded.
            height: Rows that the model takes.
            width: Columns that the model takes.

        Returns:
            `(height, width, channels)`, float32.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no image, damaged, too elongated, or has more than 8 bits a channel; or `resize` is
                smaller than what the model takes.
        """
        from PIL import Image

        picture = _open(image).convert(_MODES[len(self.mean)])
        short = min(height, width)
        resize = short if self.resize is None else self.resize
        if resize < short:
            raise ValueError(f"The model takes {height} x {width} pixels, more than resize={resize} gives.")
        if max(picture.size) > _LARGEST_ASPECT * min(picture.size):
            raise ValueError(
                f"The image has {picture.width} x {picture.height} pixels; the model would see its centre only. Cut it."
            )
        # The image covers as many times the crop as `resize` is longer than the crop's short side.
        cover_width, cover_height = (side * resize // short for side in (width, height))
        if cover_width * picture.height >= cover_height * picture.width:
            size = cover_width, cover_width * picture.height // picture.width
        else:
            size = cover_height * picture.width // picture.height, cover_height
        if size != picture.size:
            picture = picture.resize(size, getattr(Image.Resampling, self.interpolation.upper()))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        pixels = np.asarray(picture.crop((left, top, left + width, top + height)), np.float32)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (pixels.reshape(height, width, len(mean)) - 255 * mean) / (255 * std)


def _is_finite(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


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
        raise ValueError(f"The image has more than 8 bits a channel (mode {image.mode}); save it with 8 bits.")
    return ImageOps.exif_transpose(image)
