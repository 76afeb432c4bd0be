"""Records how images become a model's input, in NumPy alone, for every program that prepares images.

python tests/golden_preprocessing.py     # writes tests/golden/preprocessing.json

The page has a list of cases: the metadata as it stands in a `.tflite`, the model's input shape, a file of an image, and
the input, float32 in base64.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

GOLDEN = Path(__file__).parent / "golden" / "preprocessing.json"
RGB = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
GRAYSCALE = {"mean": [0.3052], "std": [0.376]}
# Name, height and width of the file, its format, the model's input, and the metadata.
CASES = [
    ("as it is", (16, 12), "PNG", (16, 12, 3), {**RGB, "resize_size": [16, 12], "interpolation": "bilinear"}),
    ("smaller", (40, 61), "PNG", (24, 24, 3), {**RGB, "resize_size": [27, 27], "interpolation": "bicubic"}),
    ("upright", (61, 40), "PNG", (20, 14, 3), {**RGB, "resize_size": [25, 17], "interpolation": "bilinear"}),
    ("larger", (9, 7), "PNG", (16, 16, 1), {**GRAYSCALE, "resize_size": [18, 18], "interpolation": "bicubic"}),
    ("turned", (50, 34), "JPEG", (16, 20, 3), {**RGB, "resize_size": [16, 20], "interpolation": "bilinear"}),
]


def kernel(x, interpolation):
    """Returns the values of the triangle or of Keys' cubic, with a = -1/2."""
    x = np.abs(x)
    if interpolation == "bilinear":
        return np.maximum(1 - x, 0)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def weights(length, resized, interpolation):
    """Returns the matrix that resizes `length` pixels, with the kernel widened where they become fewer."""
    step = length / resized
    centers = (np.arange(resized) + 0.5) * step
    values = kernel((np.arange(length) + 0.5 - centers[:, np.newaxis]) / max(step, 1), interpolation)
    return values / values.sum(axis=1, keepdims=True)


def centered(pixels, height, width):
    """Returns the center of an image."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def prepared(pixels, shape, metadata):
    """Returns the model's input for uint8 `(height, width, channels)`."""
    rows, columns = metadata["resize_size"]
    height, width = pixels.shape[:2]
    pixels = centered(pixels, min(height, width * rows // columns), min(width, height * columns // rows))
    vertical, horizontal = (
        weights(length, resized, metadata["interpolation"])
        for length, resized in zip(pixels.shape, (rows, columns), strict=False)
    )
    resized = np.clip(np.einsum("ih,jw,hwc->ijc", vertical, horizontal, pixels.astype(np.float64)), 0, 255)
    return ((centered(resized, *shape[:2]) / 255 - metadata["mean"]) / metadata["std"]).astype("<f4")


def main():
    """Writes the file."""
    cases = []
    for seed, (name, size, kind, shape, metadata) in enumerate(CASES):
        noise = np.random.default_rng(seed).integers(0, 256, (6, 6, shape[-1]), np.uint8).squeeze()
        picture = Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC)
        file, exif = io.BytesIO(), Image.Exif()
        if name == "turned":
            exif[0x0112] = 6  # EXIF orientation: turn it a quarter clockwise
        picture.save(file, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
        pixels = np.asarray(ImageOps.exif_transpose(Image.open(file)))
        expected = prepared(pixels.reshape(*pixels.shape[:2], shape[-1]), shape, metadata)
        names = [f"class {index}" for index in range(3)]
        cases.append(
            {
                "name": name,
                "metadata": {"version": 2, **metadata, "outputs": "logits", "labels": names},
                "input_shape": shape,
                "image": base64.b64encode(file.getvalue()).decode(),
                "expected": base64.b64encode(expected.tobytes()).decode(),
            }
        )
    GOLDEN.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
