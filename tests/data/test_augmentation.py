"""Augmentation, shuffling, epochs and caches of load."""

import keras
import numpy as np
import pytest
from PIL import Image
from small_data_sets import arrays, denormalize, pixels, smooth_image, stored

from keras_binaryvit import data
from keras_binaryvit.data import augmentation, datasets

tfds = pytest.importorskip("tensorflow_datasets")
tf = pytest.importorskip("tensorflow")
pytest.importorskip("sklearn")


def test_pad_crop(data_dir):
    plain = pixels("fixed", data_dir)
    padded = np.pad(plain, ((0, 0), (2, 2), (2, 2), (0, 0)))
    found = set()
    dataset = data.load("fixed", data_dir=data_dir, augment="pad_crop", shuffle=False, batch_size=7)
    for _ in range(5):
        moved = denormalize(arrays(dataset)[0], "fixed")
        for i in range(len(plain)):
            hits = [
                (y, x, flip)
                for y, x, flip in np.ndindex(5, 5, 2)
                if (padded[i, y : y + 16, x : x + 16][:, :: -1 if flip else 1] == moved[i]).all()
            ]
            assert len(hits) == 1
            found.update(hits)
    assert {y for y, _, _ in found} == {x for _, x, _ in found} == set(range(5))
    assert {flip for _, _, flip in found} == {0, 1}


def test_true_chooses_by_the_stored_size(data_dir):
    def same(name, augment):
        a, b = (arrays(data.load(name, data_dir=data_dir, image_size=16, augment=a))[0] for a in (True, augment))
        return np.array_equal(a, b)

    assert same("fixed", "pad_crop") and not same("fixed", "random_resized_crop")
    assert same("varying", "random_resized_crop") and not same("varying", "pad_crop")


@pytest.mark.parametrize("name", ["fixed", "varying_png"])
def test_random_resized_crops_are_parts_of_the_image(data_dir, name):
    images = stored(name, data_dir)
    boxes = set()
    moved = pixels(name, data_dir, augment="random_resized_crop", image_size=16)
    for image, crop in zip(images, moved, strict=True):
        height, width = image.shape[:2]
        flip = crop[8, 0, 1] > crop[8, 15, 1]
        crop = crop[:, ::-1] if flip else crop
        # Where in the image the crop's pixels come from, read off the colors; away from the border, which repeats.
        rows = crop[..., 0].mean(axis=1) * (height - 1) / 255
        columns = crop[..., 1].mean(axis=0) * (width - 1) / 255
        step_y, step_x = (rows[12] - rows[4]) / 8, (columns[12] - columns[4]) / 8
        box_height, box_width = 16 * step_y, 16 * step_x
        top, left = rows[8] - 8.5 * step_y + 0.5, columns[8] - 8.5 * step_x + 0.5
        bottom, right = top + box_height, left + box_width
        slack = 1.0 if name != "fixed" else 0.2  # pixels; encoded images are cut at whole ones
        assert min(top, left) > -slack and bottom < height + slack and right < width + slack
        assert (box_height + slack) * (box_width + slack) > 0.08 * height * width
        assert 3 / 4 - 0.1 < box_width / box_height < 4 / 3 + 0.1
        box = (max(0, left), max(0, top), min(width, right), min(height, bottom))
        box = box if name == "fixed" else tuple(np.round(box))
        window = np.asarray(Image.fromarray(image).resize((16, 16), Image.BILINEAR, box))
        assert np.abs(window[2:-2, 2:-2].astype(int) - crop[2:-2, 2:-2]).max() < 12
        boxes.add((bool(flip), *np.round(box)))
    assert len(boxes) == len(images)
    assert {flip for flip, *_ in boxes} == {False, True} or name != "fixed"


def test_partly_decoded_jpegs_are_the_crops_of_decoded_ones(data_dir):
    arguments = {"augment": "random_resized_crop", "image_size": 16, "shuffle": False, "data_dir": data_dir}
    datasets = [data.load(name, **arguments) for name in ("varying", "varying_png")]
    for _ in range(20):  # a JPEG's part outside the image would be an error
        jpeg, png = (denormalize(arrays(dataset)[0], "varying").astype(int) for dataset in datasets)
        assert np.abs(jpeg - png).max() < 12 and np.abs(jpeg - png).mean() < 2


def test_random_boxes():
    # As many as torchvision's RandomResizedCrop draws, of each area: it draws ten times, until one fits.
    generator = np.random.default_rng(0)
    for height, width in [(32, 32), (50, 200), (300, 100)]:
        top, left, box_height, box_width = (
            value.numpy() for value in augmentation.random_boxes(tf.constant([1, 2], tf.int64), 4000, height, width)
        )
        assert top.min() > -1e-3 and (top + box_height).max() < height + 1e-3
        assert left.min() > -1e-3 and (left + box_width).max() < width + 1e-3
        for start, room in ((top, height - box_height), (left, width - box_width)):
            np.testing.assert_allclose(
                np.quantile(start[room > 1] / room[room > 1], [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.04
            )
        aspect = box_width / box_height
        assert 0.75 - 1e-4 < aspect.min() < 0.76 and 1.32 < aspect.max() < 4 / 3 + 1e-4
        area = box_height * box_width / (height * width)
        assert 0.08 - 1e-4 < area.min() < 0.09
        draws = generator.uniform(0.08, 1, (4000, 10)) * height * width
        ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3), (4000, 10)))
        fits = (np.sqrt(draws * ratio) <= width) & (np.sqrt(draws / ratio) <= height)
        expected = [draw[fit][0] / (height * width) for draw, fit in zip(draws, fits, strict=True) if fit.any()]
        quantiles = np.linspace(0.1, 0.9, 9)
        np.testing.assert_allclose(np.quantile(area, quantiles), np.quantile(expected, quantiles), atol=0.03)


def test_identity_box_keeps_the_image_and_a_half_box_is_bilinear():
    image = smooth_image(16, 16, 3).astype(np.float32)
    kept = augmentation.augment_batch(tf.constant(image[None]), None, False, tf.constant([0, 1], tf.int64))
    np.testing.assert_array_equal(kept[0], image)
    # A box is what tf.image.resize makes of the cut-out part, apart from its border, where it sees more of the image.
    top, left, height, width = (tf.constant([value], tf.float32) for value in (4, 2, 8, 8))
    original = augmentation.random_boxes
    try:
        augmentation.random_boxes = lambda *_: (top, left, height, width)
        crop = augmentation.augment_batch(
            tf.constant(image[None]), "random_resized_crop", False, tf.constant([0, 1], tf.int64)
        )
    finally:
        augmentation.random_boxes = original
    expected = tf.image.resize(image[4:12, 2:10], (16, 16))
    np.testing.assert_allclose(crop[0, 1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-3)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("augment", ["random_resized_crop", "pad_crop"])
@pytest.mark.parametrize("name", ["fixed", "varying", "digits"])
def test_epochs_are_reproducible_and_differ(data_dir, name, augment, cache):
    def epochs(seed):
        kwargs = {"image_size": 16, "augment": augment, "cache": cache, "seed": seed, "batch_size": 3, "shuffle": False}
        dataset = data.load(name, "train[:16]" if name != "varying" else "train", data_dir=data_dir, **kwargs)
        return [arrays(dataset)[0] for _ in range(3)]

    first, again, other = epochs(1), epochs(1), epochs(2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[1], first[2])
    assert not np.array_equal(first[0], other[0])


def test_shuffling(data_dir):
    ordered = [arrays(data.load("fixed", split, data_dir=data_dir, shuffle=False))[0] for split in ("train", "test")]
    np.testing.assert_array_equal(arrays(data.load("fixed", "test", data_dir=data_dir))[0], ordered[1])
    for cache in (True, False):
        dataset = data.load("fixed", data_dir=data_dir, cache=cache)
        one, two = arrays(dataset)[0], arrays(dataset)[0]
        np.testing.assert_array_equal(one, arrays(data.load("fixed", data_dir=data_dir, cache=cache))[0])
        assert not np.array_equal(one, ordered[0]) and not np.array_equal(one, two)
        np.testing.assert_array_equal(np.sort(one, axis=0), np.sort(ordered[0], axis=0))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    "name, augment", [("fixed", "pad_crop"), ("varying", "random_resized_crop"), ("varying", False), ("digits", True)]
)
def test_first_epoch(data_dir, name, augment, cache):
    split = {"digits": "train[:40]+test[:5]", "fixed": "train+test", "varying": "train"}[name]  # 2, 8 and 1 files

    def load(**arguments):
        arguments |= {"image_size": 16, "augment": augment, "batch_size": 3, "data_dir": data_dir, "cache": cache}
        return data.load(name, split, **arguments)

    whole = load()
    expected = [arrays(whole) for _ in range(4)]
    assert not np.array_equal(expected[2][0], expected[3][0])
    continued = load(first_epoch=2)
    for images, labels in expected[2:]:
        iter(continued)  # nothing is read: no epoch
        found = arrays(continued)
        np.testing.assert_array_equal(found[0], images)
        np.testing.assert_array_equal(found[1], labels)


def test_first_epoch_writes_no_half_cache(data_dir, tmp_path):
    arguments = {"data_dir": data_dir, "augment": True}
    whole = data.load("fixed", cache=tmp_path / "whole", **arguments)
    expected = [arrays(whole)[0] for _ in range(3)]
    continued = data.load("fixed", cache=tmp_path / "continued", first_epoch=2, **arguments)
    np.testing.assert_array_equal(arrays(continued)[0], expected[2])
    again = data.load("fixed", cache=tmp_path / "whole", first_epoch=2, **arguments)
    np.testing.assert_array_equal(arrays(again)[0], expected[2])


@pytest.mark.parametrize("value", [-1, 1.5, "2", True])
def test_bad_first_epoch(value):
    with pytest.raises(ValueError, match=f"first_epoch must be an integer, 0 or more. Received: first_epoch={value!r}"):
        data.load(first_epoch=value)


def test_automatic_cache_depends_on_the_size(data_dir, monkeypatch):
    def is_cached():
        calls = []
        monkeypatch.setattr(tf.data.Dataset, "cache", lambda self, path: calls.append(path) or self)
        data.load("fixed", data_dir=data_dir)
        return calls == [""]

    assert is_cached()
    monkeypatch.setattr(datasets, "_CACHE_LIMIT", 20 * 16 * 16 * 3)
    assert not is_cached()
    monkeypatch.setattr(datasets, "_CACHE_LIMIT", 20 * 16 * 16 * 3 + 1)
    assert is_cached()


def test_fit():
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile(
        keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    model.fit(data.load(batch_size=32, augment=True), epochs=3, validation_data=data.load(split="test"), verbose=0)
    assert model.evaluate(data.load(split="test"), verbose=0)[1] > 0.5
