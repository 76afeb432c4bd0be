"""ImageClassifier: pixels, files and labels."""

import keras
import numpy as np
import pytest
from layer_checks import numpy, randomize

import keras_binaryvit as kb
from keras_binaryvit.layers import ImagePreprocessor

NAMES = ("ant", "bee", "cat")
PREPROCESSOR = ImagePreprocessor(16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))


def vit(**changes):
    arguments = {"preprocessor": PREPROCESSOR, "class_names": NAMES, **changes}
    return randomize(kb.BinaryViT((16, 16, 3), 3, 4, (16, 32), (1, 1), (1, 2), (2, 1), (2, 1), **arguments))


def pixels(*shape):
    return np.random.default_rng(1).integers(0, 256, shape).astype("uint8")


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.once
def test_integer_images_are_pixels_everywhere():
    model, images = vit(), pixels(4, 16, 16, 3)
    expected = numpy(model(PREPROCESSOR(images)))
    np.testing.assert_allclose(numpy(model(images)), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.predict(images.astype("int32"), verbose=0), expected, rtol=1e-4, atol=1e-4)
    model.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    labels = expected.argmax(-1)
    assert model.evaluate(images, labels, verbose=0)[1] == 1
    assert np.isfinite(model.fit(images, labels, verbose=0).history["loss"]).all()


def test_integer_images_without_a_preprocessor():
    model, images = vit(preprocessor=None), pixels(2, 16, 16, 3)
    before = model.get_weights()
    model.compile("sgd", "mse")
    for use in (model.predict, lambda x: model.fit(x, x), lambda x: model.evaluate(x, x), model):
        with pytest.raises(TypeError, match="integer images, which are pixels, and it has no preprocessor"):
            use(images)
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    with pytest.raises(ValueError, match=r"takes images of shape \(16, 16, 3\); resize them"):
        vit().predict(pixels(2, 20, 20, 3))


@pytest.mark.once
def test_classify(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    model, images = vit(), pixels(2, 20, 24, 3)
    probabilities = softmax(numpy(model(PREPROCESSOR(images))))
    paths = [tmp_path / "a name.png", tmp_path / "b.png"]
    for path, image in zip(paths, images, strict=True):
        image_module.fromarray(image).save(path)
    pictures = [image_module.open(path) for path in paths]
    for given in (images, list(images), paths, [str(path) for path in paths], pictures, [images[0], paths[1]]):
        results = model.classify(given, top=2)
        for result, row in zip(results, probabilities, strict=True):
            best = np.argsort(-row)[:2]
            assert [(p.index, p.label) for p in result] == [(i, NAMES[i]) for i in best]
            np.testing.assert_allclose([p.probability for p in result], row[best], rtol=1e-4)
    for one in (images[0], paths[0], str(paths[0]), pictures[0]):
        ((first, *_),) = model.classify(one)
        assert first.index == probabilities[0].argmax()
    assert len(model.classify(images, batch_size=1)[0]) == 3
    assert model.classify([]) == []


def test_classify_applies_exif_orientation(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    picture = image_module.fromarray(pixels(20, 30, 3))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.transpose(image_module.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    model = vit()
    assert model.classify(tmp_path / "turned.png") == model.classify(tmp_path / "upright.png")


def test_grayscale_images_for_color_models_and_the_other_way_round():
    gray = pixels(16, 16)
    model = vit(class_names=None)
    assert model.classify(gray) == model.classify(np.stack([gray] * 3, -1))
    assert {p.label for p in model.classify(gray)[0]} == {"0", "1", "2"}


@pytest.mark.parametrize(
    "image, error, message",
    [
        ("missing.png", FileNotFoundError, "no image file 'missing.png'"),
        (np.zeros((4, 4, 3), "float32"), TypeError, "uint8.*float32"),
        (np.zeros((4, 4, 2), "uint8"), ValueError, r"3 channels. Received: shape \(4, 4, 2\)"),
        ([3], TypeError, "Received: int"),
        (__file__, ValueError, "can't be read as an image"),
    ],
)
def test_no_images(image, error, message):
    pytest.importorskip("PIL.Image")
    with pytest.raises(error, match=message):
        vit().classify(image)


def test_what_can_not_classify():
    for model in (vit(preprocessor=None), vit(include_top=False)):
        with pytest.raises(ValueError, match="without a preprocessor or without its top"):
            model.classify(pixels(16, 16, 3))
    with pytest.raises(ValueError, match="top=0"):
        vit().classify(pixels(16, 16, 3), top=0)


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="num_classes=3. Received: 2 names"):
        vit(class_names=("ant", "bee"))
    with pytest.raises(ValueError, match=r"gives images of shape \(8, 8, 3\)"):
        vit(preprocessor=ImagePreprocessor(8, (0.5,) * 3, (0.2,) * 3))


def test_saved_with_the_model(tmp_path):
    model = vit()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.class_names == NAMES
    assert loaded.preprocessor.get_config() == PREPROCESSOR.get_config()
    images = pixels(2, 20, 24, 3)
    assert loaded.classify(images) == model.classify(images)
    assert loaded.get_config() == model.get_config()
    deit = kb.DeiT((16, 16, 3), 3, 4, 16, 1, 2, preprocessor=PREPROCESSOR, class_names=NAMES)
    assert len(deit.classify(images)[0]) == 3


@pytest.mark.once
def test_deployed_and_trained_copies():
    model = vit()
    frozen = kb.deploy.freeze(model)
    images = pixels(2, 16, 16, 3)
    np.testing.assert_allclose(numpy(frozen(PREPROCESSOR(images))), numpy(model(images)), rtol=1e-4, atol=1e-3)
    copy = kb.training.with_full_precision_kernels(model)
    assert copy.class_names == NAMES
