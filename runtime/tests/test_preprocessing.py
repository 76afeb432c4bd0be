"""Preprocessor: from pixels and files to a model's input."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from binaryvit_runtime import Classifier, Preprocessor
from classifiers import classifier
from PIL import Image

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "preprocessing.json"
RGB = Preprocessor((0.5, 0.25, 0.0), (0.5, 2.0, 1.0))
GRAYSCALE = Preprocessor((0.5,), (0.25,))
PLAIN = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}  # leaves the pixels as they are


def pixels(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_an_image_of_the_models_size_is_normalized():
    image = pixels(5, 4)
    expected = (image / 255 - [0.5, 0.25, 0.0]) / [0.5, 2.0, 1.0]
    for given_image in image, Image.fromarray(image):
        result = RGB(given_image, 5, 4)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=1e-6)
    gray = image[..., :1]
    for given_image in gray, gray[..., 0]:
        np.testing.assert_allclose(GRAYSCALE(given_image, 5, 4), (gray / 255 - 0.5) / 0.25, atol=1e-6)


def test_without_resizing_the_center_is_cropped():
    image = pixels(9, 12)
    preprocessor = Preprocessor(**PLAIN, resize_size=9)  # of the 9 x 9 in the center
    np.testing.assert_allclose(preprocessor(image, 4, 4), image[2:6, 3:7], atol=1e-3)
    np.testing.assert_allclose(Preprocessor(**PLAIN)(image, 9, 12), image, atol=1e-3)
    np.testing.assert_allclose(Preprocessor(**PLAIN)(image, 9, 6), image[:, 3:9], atol=1e-3)


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()), ids=lambda case: case["name"])
def test_golden(case):
    """What tests/golden_preprocessing.py has computed, as the tests of training's preprocessor have it."""
    expected = np.frombuffer(base64.b64decode(case["expected"]), "<f4").reshape(case["input_shape"])
    kernel = np.random.default_rng(0).normal(scale=0.1, size=(3, expected.size))
    model = Classifier(classifier(kernel, expected.shape, json.dumps(case["metadata"]).encode()))
    image = Image.open(io.BytesIO(base64.b64decode(case["image"])))
    prepared = model.preprocessor(image, *expected.shape[:2])
    levels = (prepared - expected) * model.preprocessor.std * 255
    assert np.abs(levels).max() < (1.01 if case["name"] == "turned" else 1e-3)  # decoders of JPEG differ by a level
    exponentials = np.exp(kernel @ expected.ravel())
    best = model.classify(image, top=1)[0]
    assert best.label == f"class {exponentials.argmax()}"
    assert best.probability == pytest.approx(exponentials.max() / exponentials.sum(), abs=0.02)


def test_files(tmp_path):
    image = pixels(6, 8)

    def saved(name, content, **options):
        content.save(tmp_path / name, **options)
        return tmp_path / name

    plain = Preprocessor(**PLAIN)
    np.testing.assert_allclose(plain(saved("a.png", Image.fromarray(image)), 6, 8), image, atol=1e-3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood upright: turn it a quarter clockwise
    turned = plain(saved("b.png", Image.fromarray(image), exif=exif), 8, 6)
    np.testing.assert_allclose(turned, np.rot90(image, -1), atol=1e-3)
    gray = saved("c.png", Image.fromarray(image[..., 0]))
    np.testing.assert_allclose(plain(gray, 6, 8), np.repeat(image[..., :1], 3, axis=-1), atol=1e-3)
    rgba = np.concatenate([image, np.full((6, 8, 1), 255, np.uint8)], axis=-1)
    np.testing.assert_allclose(plain(str(saved("d.png", Image.fromarray(rgba))), 6, 8), image, atol=1e-3)
    palette = saved("e.gif", Image.fromarray(np.where(image > 127, 255, 0).astype(np.uint8)))
    np.testing.assert_allclose(plain(palette, 6, 8), np.where(image > 127, 255, 0), atol=1e-3)


def test_what_is_no_image_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        RGB(tmp_path / "nowhere.png", 4, 4)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="text.png' can't be read as an image"):
        RGB(tmp_path / "text.png", 4, 4)
    Image.fromarray(pixels(50, 50)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])
    with pytest.raises(ValueError, match="cut.png' can't be read as an image"):
        RGB(tmp_path / "cut.png", 4, 4)
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        RGB(tmp_path / "deep.png", 4, 4)
    for array in np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8):
        with pytest.raises(ValueError, match=r"must be uint8 \(height, width\)"):
            RGB(array, 4, 4)
    with pytest.raises(ValueError, match="takes 4 x 9 pixels, more than resize_size=3"):
        Preprocessor(**PLAIN, resize_size=3)(pixels(9, 9), 4, 9)
