"""Preprocessing: from pixels and files to a model's input."""

import numpy as np
import pytest
from binaryvit_runtime import Preprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

RGB = Preprocessing((0.5, 0.25, 0.0), (0.5, 2.0, 1.0))
GREY = Preprocessing((0.5,), (0.25,))
PLAIN = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}  # leaves the pixels as they are


def pixels(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height, width):
    """An image that two resamplers make nearly the same of."""
    return np.asarray(Image.fromarray(pixels(4, 4)).resize((width, height), Image.Resampling.BICUBIC))


def test_an_image_of_the_models_size_is_normalised():
    image = pixels(5, 4)
    expected = (image / 255 - [0.5, 0.25, 0.0]) / [0.5, 2.0, 1.0]
    for given_image in image, Image.fromarray(image):
        result = RGB(given_image, 5, 4)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=1e-6)
    grey = image[..., :1]
    for given_image in grey, grey[..., 0]:
        np.testing.assert_allclose(GREY(given_image, 5, 4), (grey / 255 - 0.5) / 0.25, atol=1e-6)


def test_without_resizing_the_centre_is_cropped():
    image = pixels(9, 12)
    preprocessing = Preprocessing(**PLAIN, resize=9)
    np.testing.assert_allclose(preprocessing(image, 4, 4), image[2:6, 4:8], atol=1e-3)
    np.testing.assert_allclose(Preprocessing(**PLAIN)(image, 9, 12), image, atol=1e-3)
    np.testing.assert_allclose(Preprocessing(**PLAIN)(image, 9, 6), image[:, 3:9], atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(20, 90), st.integers(20, 90), st.integers(7, 40))
def test_crops_are_those_of_training(height, width, size):
    """Images that differ in size: `keras_binaryvit.data` resizes them in TensorFlow."""
    data = pytest.importorskip("keras_binaryvit.data")
    pytest.importorskip("tensorflow")
    image = smooth(height, width)
    preprocessing = Preprocessing(**PLAIN, resize=round(size * 256 / 224), interpolation="bicubic")
    expected = data._center_crop(image, size).numpy()
    np.testing.assert_allclose(preprocessing(image, size, size), expected, atol=1.01)


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 60), st.integers(3, 60))
def test_sizes_are_those_of_training(stored, size):
    """Square images of one size, likewise."""
    tf = pytest.importorskip("tensorflow")
    image = smooth(stored, stored)
    expected = tf.image.resize(image, (size, size), "bilinear", antialias=size < stored).numpy()
    np.testing.assert_allclose(Preprocessing(**PLAIN)(image, size, size), expected, atol=1.01)


def test_files(tmp_path):
    image = pixels(6, 8)

    def saved(name, content, **options):
        content.save(tmp_path / name, **options)
        return tmp_path / name

    plain = Preprocessing(**PLAIN)
    np.testing.assert_allclose(plain(saved("a.png", Image.fromarray(image)), 6, 8), image, atol=1e-3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood upright: turn it a quarter clockwise
    turned = plain(saved("b.png", Image.fromarray(image), exif=exif), 8, 6)
    np.testing.assert_allclose(turned, np.rot90(image, -1), atol=1e-3)
    grey = saved("c.png", Image.fromarray(image[..., 0]))
    np.testing.assert_allclose(plain(grey, 6, 8), np.repeat(image[..., :1], 3, axis=-1), atol=1e-3)
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
    with pytest.raises(ValueError, match="1700 x 100 pixels"):
        RGB(pixels(100, 1700), 4, 4)
    for array in np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8):
        with pytest.raises(ValueError, match=r"must be uint8 \(height, width\)"):
            RGB(array, 4, 4)
    with pytest.raises(ValueError, match="takes 4 x 9 pixels, more than resize=3"):
        Preprocessing(**PLAIN, resize=3)(pixels(9, 9), 4, 9)
