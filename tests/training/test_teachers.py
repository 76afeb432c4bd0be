"""AdaptedTeacher: what the teacher sees and what comes out, against NumPy and networks called by hand."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_binaryvit.layers import ImagePreprocessor
from keras_binaryvit.training import AdaptedTeacher
from keras_binaryvit.training.teachers import gives_probabilities


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype("uint8")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def seen(shape):
    """A teacher whose logits are the pixels that reach it."""
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten()], name="seen")


def preprocessor(height, width, channels):
    return ImagePreprocessor((height, width), (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels])


def pixels_seen(shape, images, **arguments):
    prepared = preprocessor(*images.shape[1:])
    adapted = AdaptedTeacher(seen(shape), prepared, **arguments)
    return numpy(adapted(prepared(images))).reshape(len(images), *shape)


def test_mobilenet():
    """Another size, pixels of -1 ... 1, and probabilities."""
    network = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=12)
    assert gives_probabilities(network)
    preprocess = keras.applications.mobilenet_v2.preprocess_input
    images = pixels(3, 16, 16, 3)
    teacher = AdaptedTeacher(network, preprocessor(16, 16, 3), preprocess=preprocess, classes=[11, 0, 3, 4])
    logits = numpy(teacher(preprocessor(16, 16, 3)(images)))
    larger = ops.image.resize(images.astype("float32"), (32, 32), "bilinear")
    expected = numpy(network(numpy(larger) / 127.5 - 1, training=False))
    np.testing.assert_allclose(logits, np.log(expected)[:, [11, 0, 3, 4]], rtol=1e-4, atol=1e-4)


def test_caffe_preprocessing():
    images = pixels(2, 4, 4, 3)
    result = pixels_seen((4, 4, 3), images, preprocess=keras.applications.resnet50.preprocess_input)
    expected = images[..., ::-1] - np.array([103.939, 116.779, 123.68])
    np.testing.assert_allclose(result, expected, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back(channels):
    images = pixels(2, 5, 4, channels)
    np.testing.assert_allclose(pixels_seen((5, 4, channels), images), images, atol=1e-3)


def test_grayscale_becomes_rgb():
    images = pixels(2, 4, 4, 1)
    np.testing.assert_allclose(pixels_seen((4, 4, 3), images), np.repeat(images, 3, axis=-1), atol=1e-3)


def test_smaller_images_are_means():
    """With antialiasing no pixel is left out."""
    images = np.zeros((1, 8, 8, 1), "uint8")
    images[0, 3, 3] = 255
    result = pixels_seen((2, 2, 1), images)
    np.testing.assert_allclose(result.sum(), 255 / 16, rtol=0.5)
    assert (result > 0).all()


@pytest.mark.parametrize("softmax_at", ["activation", "layer", "nested"])
def test_probabilities_become_logits(softmax_at):
    dense = keras.layers.Dense(3, "softmax" if softmax_at == "activation" else None)
    layers = [keras.Input((2, 2, 1)), keras.layers.Flatten(), dense]
    if softmax_at == "layer":
        layers.append(keras.layers.Softmax())
    if softmax_at == "nested":
        layers.append(keras.Sequential([keras.Input((3,)), keras.layers.Activation("softmax")]))
    network = keras.Sequential(layers)
    teacher = AdaptedTeacher(network, preprocessor(2, 2, 1))
    images = pixels(4, 2, 2, 1)
    logits = numpy(teacher(preprocessor(2, 2, 1)(images)))
    assert np.isfinite(logits).all() and logits.min() < -20
    np.testing.assert_allclose(numpy(ops.softmax(logits)), numpy(network(images.astype("float32"))), atol=1e-5)


def test_from_logits_overrules():
    network = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Softmax()])
    images = preprocessor(2, 2, 1)(pixels(1, 2, 2, 1))
    outputs = numpy(AdaptedTeacher(network, preprocessor(2, 2, 1), from_logits=True)(images))
    np.testing.assert_allclose(outputs.sum(), 1, rtol=1e-5)


def test_runs_in_inference_mode_and_float32():
    layers = [keras.layers.Dropout(0.9), keras.layers.BatchNormalization(), keras.layers.Flatten()]
    network = keras.Sequential([keras.Input((2, 2, 1)), *layers])
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_float16")
        teacher = AdaptedTeacher(network, preprocessor(2, 2, 1))
    finally:
        keras.config.set_dtype_policy(before)
    images = pixels(3, 2, 2, 1)
    outputs = teacher(preprocessor(2, 2, 1)(images), training=True)
    np.testing.assert_allclose(numpy(outputs), images.reshape(3, 4) / np.sqrt(1.001), rtol=1e-4, atol=1e-3)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"classes": [0, 4]}, "among the teacher's 4.*classes="),
        ({"classes": []}, "among the teacher's 4"),
        ({"teacher": keras.Sequential([keras.layers.Flatten()])}, "no weights yet"),
        ({"teacher": keras.Sequential([keras.Input((2, 2, 1)), keras.layers.ReLU()])}, "must give .batch, classes"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptedTeacher(**{"teacher": seen((2, 2, 1)), "preprocessor": preprocessor(2, 2, 1), **arguments})
