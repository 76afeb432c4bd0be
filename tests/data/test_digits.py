"""load, info and preprocessor of the digits that come with scikit-learn."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from small_data_sets import arrays, denormalize

from keras_binaryvit import data

tfds = pytest.importorskip("tensorflow_datasets")
tf = pytest.importorskip("tensorflow")
pytest.importorskip("sklearn")


def test_digits_batches():
    dataset = data.load()
    images_spec, labels_spec = dataset.element_spec
    assert images_spec.shape.as_list() == [None, 8, 8, 1] and images_spec.dtype == tf.float32
    assert labels_spec.shape.as_list() == [None] and labels_spec.dtype == tf.int32
    images, labels = arrays(dataset)
    assert images.shape == (1442, 8, 8, 1) and labels.shape == (1442,)
    assert len(dataset) == 12
    assert len(data.load(drop_remainder=True)) == 11


def test_digits_info():
    described = data.info()
    assert dataclasses.asdict(described) == {
        "name": "digits",
        "num_classes": 10,
        "class_names": tuple("0123456789"),
        "image_shape": (8, 8, 1),
        "num_examples": {"train": 1442, "test": 355},
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        described.name = "other"


def test_digits_split_is_fixed_stratified_and_complete():
    from sklearn.datasets import load_digits

    original = load_digits()
    train = arrays(data.load(shuffle=False, seed=1))
    test = arrays(data.load(split="test", seed=2))
    for k in range(10):
        assert abs(sum(test[1] == k) / sum(original.target == k) - 0.2) < 0.01
    both = np.concatenate([denormalize(train[0], "digits"), denormalize(test[0], "digits")])
    expected = np.rint(original.images * 255 / 16).astype(np.uint8)
    key = lambda images: sorted(image.tobytes() for image in images)  # noqa: E731
    assert key(both) == key(expected)
    assert {image.tobytes() for image in denormalize(test[0], "digits")} == {
        expected[i].tobytes() for k in range(10) for i in np.flatnonzero(original.target == k)[4::5]
    }


def test_digits_are_normalized_by_the_training_images():
    images, _ = arrays(data.load())
    assert abs(images.mean()) < 1e-3 and abs(images.std() - 1) < 1e-3


@pytest.mark.parametrize("augment", ["pad_crop", True])
def test_digits_are_shifted_but_not_flipped(augment):
    plain = denormalize(arrays(data.load(split="test"))[0], "digits")
    moved = denormalize(arrays(data.load(split="test", augment=augment))[0], "digits")
    padded = np.pad(plain, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = set()
    for i in range(len(plain)):
        hits = [(y, x) for y in range(3) for x in range(3) if (padded[i, y : y + 8, x : x + 8] == moved[i]).all()]
        assert hits, i
        found.add(hits[0])
    assert len(found) == 9


def test_digits_are_resized():
    plain, _ = arrays(data.load(split="test"))
    images, _ = arrays(data.load(split="test", image_size=16))
    expected = [np.asarray(Image.fromarray(image[..., 0]).resize((16, 16), Image.BILINEAR)) for image in plain]
    np.testing.assert_allclose(images[..., 0], expected, atol=1e-5)
    smaller, _ = arrays(data.load(split="test", image_size=4))
    expected = [np.asarray(Image.fromarray(image[..., 0]).resize((4, 4), Image.BILINEAR)) for image in plain]
    np.testing.assert_allclose(smaller[..., 0], expected, atol=1e-5)
