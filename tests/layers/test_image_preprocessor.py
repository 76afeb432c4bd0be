"""ImagePreprocessor against NumPy and Pillow, eagerly and in `tf.data`."""

import base64
import io
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from layer_checks import numpy

from keras_binaryvit.images import read_image
from keras_binaryvit.layers import ImagePreprocessor

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocessing.json"
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def pixels(*shape, seed=0):
    """Returns smooth uint8 images, with the contrast of photographs."""
    image_module = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(seed).integers(0, 256, (*shape[:-3], 8, 8, shape[-1])).astype("uint8")
    flat = noise.reshape(-1, 8, 8, shape[-1])
    size = shape[-2], shape[-3]
    resized = [
        np.asarray(image_module.fromarray(image).resize(size, image_module.Resampling.BICUBIC)) for image in flat
    ]
    return np.stack(resized).reshape(shape)


def normalized(images):
    return (images.astype("float64") / 255 - MEAN) / STD


def test_images_of_the_right_size_are_only_normalized():
    images = pixels(2, 12, 10, 3)
    preprocessor = ImagePreprocessor((12, 10), MEAN, STD)
    for kind in ("uint8", "int32", "float32"):
        outputs = numpy(preprocessor(images.astype(kind)))
        assert outputs.dtype == np.float32
        np.testing.assert_allclose(outputs, normalized(images), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(preprocessor.denormalize(preprocessor(images)), images)
    np.testing.assert_allclose(numpy(preprocessor.normalize(images)), normalized(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 60, 3), (61, 40, 3), (20, 20, 3)])
def test_crop_resize_crop_as_pillow_does(shape, interpolation):
    image_module = pytest.importorskip("PIL.Image")
    image = pixels(*shape)
    preprocessor = ImagePreprocessor(24, MEAN, STD, resize_size=28, interpolation=interpolation)
    side = min(shape[:2])
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    picture = image_module.fromarray(image).resize(
        (28, 28), getattr(image_module.Resampling, interpolation.upper()), box=(left, top, left + side, top + side)
    )
    expected = np.asarray(picture)[2:26, 2:26]
    levels = numpy(preprocessor(image)) * STD * 255 + np.multiply(MEAN, 255)
    # Pillow rounds the rows and then the columns to integers.
    assert np.abs(levels - expected).max() < 3


def test_in_a_pipeline():
    tf = pytest.importorskip("tensorflow")
    images = pixels(4, 40, 50, 3)
    preprocessor = ImagePreprocessor((24, 20), MEAN, STD, resize_size=(30, 25), interpolation="bicubic")
    expected = numpy(preprocessor(images))
    known = tf.data.Dataset.from_tensor_slices(images).map(preprocessor)
    unknown = tf.data.Dataset.from_generator(
        lambda: iter(images), output_signature=tf.TensorSpec((None, None, 3), tf.uint8)
    ).map(preprocessor)
    for dataset in (known, unknown, tf.data.Dataset.from_tensor_slices(images).batch(4).map(preprocessor).unbatch()):
        outputs = np.stack(list(dataset.as_numpy_iterator()))
        np.testing.assert_allclose(outputs, expected, atol=1e-4)


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()), ids=lambda case: case["name"])
def test_golden(case):
    """What tests/golden_preprocessing.py has computed, as the runtime's test has it."""
    image_module = pytest.importorskip("PIL.Image")
    *size, channels = case["input_shape"]
    described = {name: case["metadata"][name] for name in ("mean", "std", "resize_size", "interpolation")}
    preprocessor = ImagePreprocessor(size, **described)
    assert json.loads(json.dumps(preprocessor.to_metadata())) == described
    pixels = read_image(image_module.open(io.BytesIO(base64.b64decode(case["image"]))), channels)
    expected = np.frombuffer(base64.b64decode(case["expected"]), "<f4").reshape(case["input_shape"])
    # Decoders of JPEG differ by a level.
    tolerance = 1.01 / 255 / min(described["std"]) if case["name"] == "turned" else 1e-4
    np.testing.assert_allclose(numpy(preprocessor(pixels)), expected, atol=tolerance)
    tf = pytest.importorskip("tensorflow")
    batches = tf.data.Dataset.from_tensors(pixels).repeat(2).batch(2).map(preprocessor)
    for image in next(batches.as_numpy_iterator()):
        np.testing.assert_allclose(image, expected, atol=tolerance)


def test_config():
    preprocessor = ImagePreprocessor(8, [0.5], [0.25], resize_size=9, interpolation="bicubic", name="mine")
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(preprocessor))
    assert clone.get_config() == preprocessor.get_config()
    assert clone.get_config() == {
        **{"image_size": (8, 8), "mean": (0.5,), "std": (0.25,), "resize_size": (9, 9)},
        **{"interpolation": "bicubic", "name": "mine"},
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((8, 8), (0.5, 0.5), (1, 1)), "1 or 3 channels"),
        (((8, 8), (0.5,), (0.0,)), "std be positive"),
        (((8, 8), (float("nan"),), (1,)), "finite"),
        (((8, 0), (0.5,), (1,)), "image_size=0"),
        (((8, 8, 3), (0.5,), (1,)), r"\(height, width\)"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImagePreprocessor(*arguments)


def test_more_arguments_out_of_range():
    with pytest.raises(ValueError, match="at least image_size"):
        ImagePreprocessor(8, (0.5,), (1,), resize_size=7)
    with pytest.raises(ValueError, match="'nearest'"):
        ImagePreprocessor(8, (0.5,), (1,), interpolation="nearest")


def test_images_that_do_not_fit():
    preprocessor = ImagePreprocessor(8, MEAN, STD)
    once = numpy(preprocessor(pixels(8, 8, 3)))
    with pytest.raises(ValueError, match="normalized already"):
        preprocessor(once)
    with pytest.raises(ValueError, match="3 channels, channels last"):
        preprocessor(np.zeros((3, 8, 8), "uint8"))
