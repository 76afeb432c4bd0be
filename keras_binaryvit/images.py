"""read_image: the pixels of a file, an image of Pillow's or an array."""

import os
from typing import Any

import numpy as np


def read_image(image: Any, channels: int) -> np.ndarray:
    """Returns uint8 `(height, width, channels)`; EXIF orientation is applied.

    Args:
        image: Path of a file that Pillow reads, an image of Pillow's, or uint8 `(height, width)` or
            `(height, width, channels)`.
        channels: 1 for grayscale, 3 for RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: Pillow isn't installed, and `image` isn't an array.
        TypeError: `image` is none of these.
        ValueError: The file is damaged, or the image has more than 8 bits per channel, or other channels.
    """
    if not isinstance(image, np.ndarray):
        try:
            from PIL import Image, ImageOps
        except ImportError as error:
            raise ImportError("Pictures are read with Pillow: pip install 'keras-binaryvit[images]'") from error
        name = "The image"
        if isinstance(image, str | os.PathLike):
            name = repr(os.fspath(image))
            if not os.path.isfile(image):
                raise FileNotFoundError(f"There is no image file {name}.")
            picture: Image.Image
            try:
                picture = Image.open(image)
                picture.load()
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"{name} can't be read as an image: {error}.") from error
        elif isinstance(image, Image.Image):
            picture = image
        else:
            raise TypeError(
                f"An image is a path, an image of Pillow's or a NumPy array of uint8. Received: {type(image).__name__}"
            )
        if picture.mode.startswith(("I", "F")):
            raise ValueError(f"{name} has more than 8 bits per channel (mode {picture.mode}); save it with 8 bits.")
        image = np.asarray(ImageOps.exif_transpose(picture).convert("L" if channels == 1 else "RGB"))
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        raise TypeError(
            "An image must be uint8 (height, width) or (height, width, channels). "
            f"Received: {image.dtype} {image.shape}"
        )
    image = image.reshape(*image.shape[:2], -1)
    if image.shape[-1] == 1 and channels == 3:
        image = np.repeat(image, 3, axis=-1)
    if image.shape[-1] != channels:
        raise ValueError(f"The model takes images with {channels} channels. Received: shape {image.shape}")
    return image
