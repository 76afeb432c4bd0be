"""info, preprocessor, load and find_corrupt, on data sets of a few images which TFDS writes into a temporary folder."""

import dataclasses
import io
import json
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_binaryvit import data
from keras_binaryvit.data import augmentation, datasets
from keras_binaryvit.layers import ImagePreprocessor

tfds = pytest.importorskip("tensorflow_datasets")
tf = pytest.importorskip("tensorflow")
pytest.importorskip("sklearn")

SIZES = [(40, 60), (61, 45), (50, 50), (33, 97)]  # height, width


def smooth_image(height, width, seed, channels=3):
    """Low-frequency noise, which JPEG and different resamplers keep alike; red tells the row, green the column."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5), dtype=np.uint8)
    noise = np.asarray(Image.fromarray(noise).resize((width, height), Image.BICUBIC))
    if channels == 1:
        return noise[..., np.newaxis]
    row, column = np.mgrid[0 : 255 : height * 1j, 0 : 255 : width * 1j]
    return np.stack([np.rint(row), np.rint(column), noise], axis=-1).astype(np.uint8)


def encode(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    file.seek(0)
    return file


def write(data_dir, name, features, examples, file_count=1):
    """Write a data set with the same examples in `train` and, in reverse, in `test`."""

    def generate(order):
        return lambda: ((index, examples[index]) for index in order)

    class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.3")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            order = range(len(examples))
            return {"train": generate(order)(), "test": generate(order[::-1])()}

        def _generate_examples(self):
            raise NotImplementedError

    Writer.name = name
    config = tfds.download.DownloadConfig(num_shards=file_count)
    Writer(data_dir=data_dir).download_and_prepare(download_config=config)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    label = tfds.features.ClassLabel(names=["cat", "dog", "owl"])
    fixed = [{"image": smooth_image(16, 16, i), "label": i % 3, "id": str(i)} for i in range(20)]
    image = tfds.features.Image(shape=(16, 16, 3), encoding_format="png")
    write(folder, "fixed", {"image": image, "label": label, "id": tfds.features.Text()}, fixed, file_count=4)
    images = [smooth_image(*size, i) for i, size in enumerate(SIZES)]
    varying = [{"image": encode(image), "label": i % 3} for i, image in enumerate(images)]
    write(folder, "varying", {"image": tfds.features.Image(encoding_format="jpeg"), "label": label}, varying)
    write(
        folder,
        "varying_png",
        {"image": tfds.features.Image(encoding_format="png"), "label": label},
        [{"image": image, "label": i % 3} for i, image in enumerate(images)],
    )
    grayscale = [{"image": smooth_image(8, 12, i, 1), "label": i % 3} for i in range(4)]
    write(folder, "grayscale", {"image": tfds.features.Image(shape=(8, 12, 1)), "label": label}, grayscale)
    write(folder, "cifar10", {"image": image, "label": label}, [{"image": fixed[0]["image"], "label": 0}] * 4)
    write(folder, "unlabeled", {"image": image}, [{"image": smooth_image(16, 16, 0)}])
    return folder


def arrays(dataset):
    """One epoch as (images, labels)."""
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def pixels(name, data_dir, **kwargs):
    """One epoch's images as uint8, in their stored order."""
    return denormalize(arrays(data.load(name, data_dir=data_dir, shuffle=False, **kwargs))[0], name)


def denormalize(images, name):
    constants = {"digits": ((0.3052,), (0.376,)), "grayscale": ((0.449,), (0.226,))}
    mean, std = constants.get(name, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ImagePreprocessor(8, mean, std).denormalize(images)


def stored(name, data_dir, split="train"):
    builder = tfds.builder_from_directory(data_dir / name / "1.2.3")
    return [example["image"] for example in tfds.as_numpy(builder.as_dataset(split=split))]


# Digits.


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


# Splits.

TRAIN, TEST = np.arange(1442), 1442 + np.arange(355)


@pytest.mark.parametrize(
    "split, expected",
    [
        ("train", TRAIN),
        ("train[:100]", TRAIN[:100]),
        ("train[10%:20%]", TRAIN[144:288]),
        ("train[-33%:]", TRAIN[-476:]),
        ("test[3:5]", TEST[3:5]),
        ("test[:-350]", TEST[:5]),
        ("train[5:6]+test", np.concatenate([TRAIN[5:6], TEST])),
        ("all", np.concatenate([TRAIN, TEST])),
    ],
)
def test_slices(split, expected):
    everything = np.concatenate([arrays(data.load(split=name, shuffle=False))[0] for name in ("train", "test")])
    np.testing.assert_array_equal(arrays(data.load(split=split, shuffle=False))[0], everything[expected])


def test_sliced_tfds(data_dir):
    everything = pixels("fixed", data_dir)
    np.testing.assert_array_equal(pixels("fixed", data_dir, split="train[5:8]"), everything[5:8])
    np.testing.assert_array_equal(pixels("fixed", data_dir, split="train[-10%:]"), everything[-2:])


@pytest.mark.parametrize(
    "split, message",
    [
        ("validation", r"'digits' has the splits \{'train': 1442, 'test': 355\}.*Unknown split 'validation'"),
        ("train+valid", "'valid'"),
        ("train[:x]", r"train\[:x\]"),
        ("", "Received: split=''. Unrecognized"),
        ("train[:2000]", r"incompatible with 1442 examples"),
        ("train[5:5]", "empty"),
        ("test+train[7:5]", "empty"),
        ("all[:5]", "does not support slice"),
        ("train[3%:55]", "must be percentages, or neither"),  # TFDS takes this 55 for a percentage
        ("test+train[3:55%]", "must be percentages, or neither"),
    ],
)
def test_bad_split(split, message):
    with pytest.raises(ValueError, match=message):
        data.load(split=split)


# TFDS, evaluation.


def test_data_dir_may_begin_with_the_home_folder(data_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(data_dir))
    assert data.info("fixed", "~") == data.info("fixed", data_dir)


def test_data_dir_on_object_storage(data_dir, monkeypatch):
    bucket, find = "gs://bucket/data", tfds.core.read_only_builder.builder_from_files
    monkeypatch.setattr(tf.io.gfile, "isdir", lambda path: path == bucket)
    monkeypatch.setattr(
        tfds.core.read_only_builder,
        "builder_from_files",
        lambda name, data_dir: find(name, data_dir=folder if data_dir == bucket else data_dir),
    )
    folder = data_dir
    assert data.info("fixed", bucket) == data.info("fixed", data_dir)
    with pytest.raises(FileNotFoundError, match="data_dir 'gs://bucket/other' doesn't exist"):
        data.info("fixed", "gs://bucket/other")


def test_tfds_info(data_dir):
    names = ("cat", "dog", "owl")
    assert data.info("fixed", data_dir) == data.DatasetInfo("fixed", 3, names, (16, 16, 3), {"train": 20, "test": 20})
    assert data.info("varying:1.2.3", str(data_dir)).image_shape == (None, None, 3)
    assert data.info("grayscale", data_dir).image_shape == (8, 12, 1)


@pytest.mark.parametrize("cache", [None, True, False, "file"])
def test_fixed_size_values(data_dir, tmp_path, cache):
    cache = tmp_path / "cache" if cache == "file" else cache
    dataset = data.load("fixed", "test", data_dir=data_dir, batch_size=8, cache=cache)
    expected = (np.stack(stored("fixed", data_dir, "test")) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    for _ in range(2):
        images, labels = arrays(dataset)
        np.testing.assert_allclose(images, expected, atol=1e-5)
        assert labels.dtype == np.int32 and set(labels) == {0, 1, 2}
    assert [len(labels) for _, labels in dataset] == [8, 8, 4]
    assert bool(list(tmp_path.iterdir())) == (cache is not None and not isinstance(cache, bool))


def test_grayscale_images_stay_grayscale(data_dir):
    np.testing.assert_array_equal(pixels("grayscale", data_dir), stored("grayscale", data_dir))
    assert pixels("grayscale", data_dir, image_size=6).shape == (4, 6, 6, 1)


@pytest.mark.parametrize("name", ["varying", "varying_png"])
def test_varying_sizes_are_cropped_resized_and_cropped_in_the_center(data_dir, name):
    expected = []
    for image in stored(name, data_dir):
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        box = (left, top, left + side, top + side)
        resized = Image.fromarray(image).resize((32, 32), Image.BICUBIC, box)
        expected.append(np.asarray(resized)[2:-2, 2:-2])
    images = pixels(name, data_dir, image_size=28)
    assert images.shape == (4, 28, 28, 3)
    assert np.abs(images.astype(int) - expected).max() <= 3
    for cache in (False, True):
        np.testing.assert_array_equal(images, pixels(name, data_dir, image_size=28, cache=cache))


# Preprocessors.


@pytest.mark.parametrize("name", ["fixed", "grayscale", "varying_png", "cifar10", "digits"])
@pytest.mark.parametrize("cache", [True, False])
def test_load_gives_what_the_preprocessor_gives(data_dir, name, cache):
    images = [image for image in stored(name, data_dir)] if name != "digits" else digits(5)
    for size in (None, 12):
        if name == "varying_png" and size is None:
            continue
        preprocessor = data.preprocessor(name, size, data_dir=data_dir)
        expected = np.stack([keras.ops.convert_to_numpy(preprocessor(image)) for image in images])
        arguments = {"data_dir": data_dir, "shuffle": False, "cache": cache}
        split = "train[:5]" if name == "digits" else "train"
        found = arrays(data.load(name, split, image_size=size, **arguments))[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        np.testing.assert_array_equal(arrays(data.load(name, split, preprocessor=preprocessor, **arguments))[0], found)


def digits(count):
    from sklearn.datasets import load_digits

    original = load_digits()
    test = np.concatenate([np.flatnonzero(original.target == k)[4::5] for k in range(10)])
    train = np.delete(original.images, test, axis=0)[:count]
    return np.rint(train[..., np.newaxis] * 255 / 16).astype(np.uint8)


def test_a_preprocessor_of_ones_own(data_dir):
    mine = ImagePreprocessor((10, 8), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize_size=(12, 11), interpolation="bicubic")
    for name in ("fixed", "varying_png"):
        found = arrays(data.load(name, data_dir=data_dir, preprocessor=mine, shuffle=False))[0]
        expected = [keras.ops.convert_to_numpy(mine(image)) for image in stored(name, data_dir)]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    moved = arrays(data.load("varying_png", data_dir=data_dir, preprocessor=mine, augment=True))[0]
    assert moved.shape == found.shape
    # The range that pixels have after it.
    assert np.all(moved >= -np.divide(mine.mean, mine.std) - 1e-5)
    assert np.all(moved <= np.divide(np.subtract(1, mine.mean), mine.std) + 1e-5)
    assert moved.max() > moved.min() + 1


def test_preprocessors_of_data_sets(data_dir):
    def config(*arguments):
        return {k: v for k, v in data.preprocessor(*arguments, data_dir=data_dir).get_config().items() if k != "name"}

    bilinear, bicubic = {"interpolation": "bilinear"}, {"interpolation": "bicubic"}
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert config("digits") == {"mean": (0.3052,), "std": (0.376,), **sizes((8, 8)), **bilinear}
    assert config("digits", 32) == {"mean": (0.3052,), "std": (0.376,), **sizes((32, 32)), **bilinear}
    assert config("grayscale") == {"mean": (0.449,), "std": (0.226,), **sizes((8, 12)), **bilinear}
    assert config("fixed") == imagenet | sizes((16, 16)) | bilinear
    assert config("varying", 28) == imagenet | sizes((28, 28), (32, 32)) | bicubic
    cifar10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)}
    assert config("cifar10:1.2.3", 16) == cifar10 | sizes((16, 16)) | bilinear


def sizes(image_size, resize_size=None):
    return {"image_size": image_size, "resize_size": resize_size or image_size}


def test_preprocessors_that_do_not_fit(data_dir):
    with pytest.raises(ValueError, match="'grayscale' have 1 channels. Received: a preprocessor of 3"):
        data.load("grayscale", data_dir=data_dir, preprocessor=data.preprocessor("fixed", data_dir=data_dir))
    with pytest.raises(ValueError, match="says the size of the images. Received: image_size=12"):
        data.load(preprocessor=data.preprocessor(), image_size=12)


# Several hosts.


@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(hosts=st.integers(1, 5), batch=st.integers(1, 4), parts=st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_hosts_read_consecutive_parts(hosts, batch, parts):
    split = "+".join(f"train[{40 * i}:{40 * i + length}]" for i, length in enumerate(parts))
    sizes = [length // hosts for length in parts]
    uneven = any(length % hosts for length in parts)
    arguments = {"split": split, "shuffle": False, "batch_size": batch * hosts, "drop_remainder": uneven}
    if not any(sizes):
        with pytest.raises(ValueError, match=f"{hosts} hosts can't share"):
            data.load(shard=(0, hosts), **arguments)
        return
    everything, _ = arrays(data.load(split="train", shuffle=False))
    steps = set()
    for host in range(hosts):
        dataset = data.load(shard=(host, hosts), **arguments)
        images = [images for images, _ in dataset.as_numpy_iterator()]
        assert all(len(part) == batch for part in images[:-1])
        steps.add(len(images))
        starts = [40 * i + host * size for i, size in enumerate(sizes)]
        share = np.concatenate([everything[start : start + size] for start, size in zip(starts, sizes, strict=True)])
        expected = share[: len(share) // batch * batch] if uneven else share
        np.testing.assert_array_equal(np.concatenate([expected[:0], *images]), expected)
    assert len(steps) == 1


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_all_files(data_dir, hosts, cache):
    everything = sorted(image.tobytes() for image in pixels("fixed", data_dir))
    for shuffle in (True, False):
        shares = []
        for host in range(hosts):
            arguments = {"shard": (host, hosts), "batch_size": 8, "shuffle": shuffle, "cache": cache}
            images = arrays(data.load("fixed", data_dir=data_dir, **arguments))[0]
            shares.append([image.tobytes() for image in denormalize(images, "fixed")])
        assert {len(share) for share in shares} == {20 // hosts}
        assert sorted(sum(shares, [])) == everything


def test_hosts_augment_differently(data_dir):
    def epochs(host):  # of images that are all the same
        dataset = data.load("cifar10", data_dir=data_dir, augment=True, batch_size=4, shard=(host, 2))
        return np.stack([arrays(dataset)[0] for _ in range(3)])

    assert epochs(0).shape == epochs(1).shape == (3, 2, 16, 16, 3)
    assert not np.array_equal(epochs(0), epochs(1))
    np.testing.assert_array_equal(epochs(1), epochs(1))


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0), (0,), (0, 1, 2), (0.0, 2), None, 2])
def test_bad_shard(shard):
    with pytest.raises(ValueError, match=r"shard must be \(host, hosts\), the host from 0 to hosts - 1. Received"):
        data.load(shard=shard)


def test_shards_are_equal():
    with pytest.raises(
        ValueError, match=r"2 hosts can't share split='test' evenly: choose .* a multiple of 2, or leave"
    ):
        data.load(split="test", shard=(0, 2))
    assert len(data.load(split="test[:-1]", shard=(1, 2), batch_size=100)) == 4
    assert len(data.load(split="test", shard=(1, 2), batch_size=100, drop_remainder=True)) == 3
    with pytest.raises(
        ValueError, match=r"batch_size must be a multiple of the 3 hosts of shard=\(0, 3\). Received: 128"
    ):
        data.load(split="train[:3]", shard=(0, 3))


# Augmentation.


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


# Errors.


@pytest.mark.parametrize("argument", ["batch_size", "image_size"])
@pytest.mark.parametrize("value", [0, -3, 2.5, "8", True])
def test_bad_sizes(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be a positive integer. Received: {argument}={value!r}"):
        data.load(**{argument: value})


def test_bad_augment():
    with pytest.raises(ValueError, match="'mixup'"):
        data.load(augment="mixup")


def test_varying_sizes_need_image_size(data_dir):
    with pytest.raises(ValueError, match="'varying'.*image_size"):
        data.load("varying", data_dir=data_dir)


def test_unknown_names(data_dir):
    with pytest.raises(ValueError, match="'cifar1O'.*'cifar10'.*list_builders"):
        data.load("cifar1O", data_dir=data_dir)
    with pytest.raises(ValueError, match="foo bar"):
        data.load("foo bar", data_dir=data_dir)


def test_missing_files(data_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.load("cifar10", data_dir=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError) as raised:
        data.load("mnist", data_dir=tmp_path)
    command = f"python -c \"import tensorflow_datasets as tfds; tfds.load('mnist', data_dir='{tmp_path}')\""
    assert str(raised.value).endswith(command)
    assert not list(tmp_path.iterdir())


def test_features_for_classification_are_needed(data_dir):
    with pytest.raises(ValueError, match="'unlabeled' needs.*'label'"):
        data.info("unlabeled", data_dir)


@pytest.mark.parametrize(
    "module, extra", [("sklearn.datasets", "examples"), ("tensorflow_datasets", "data"), ("tensorflow", "tensorflow")]
)
def test_missing_packages(data_dir, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    name = "fixed" if extra == "data" else "digits"
    with pytest.raises(ImportError, match=rf"pip install 'keras-binaryvit\[{extra}\]'"):
        data.load(name, data_dir=data_dir)


@pytest.fixture(scope="module")
def damaged_dir(tmp_path_factory):
    """16 JPEGs in 4 files, of which three are damaged: cut short, garbage, and empty."""
    folder = tmp_path_factory.mktemp("damaged")
    files = [encode(smooth_image(20 + i, 30, i)).getvalue() for i in range(16)]
    files[3], files[8], files[15] = files[3][:200], b"no image" * 50, b""
    label = tfds.features.ClassLabel(num_classes=3)
    # As text, which TFDS writes as it is, and read as an image.
    examples = [{"image": content, "label": i % 3} for i, content in enumerate(files)]
    write(folder, "holed", {"image": tfds.features.Tensor(shape=(), dtype=tf.string), "label": label}, examples, 4)
    features = folder / "holed" / "1.2.3" / "features.json"
    image = tfds.features.FeaturesDict({"image": tfds.features.Image(encoding_format="jpeg"), "label": label})
    features.write_text(json.dumps(image.to_json()))
    return folder


def test_find_corrupt(damaged_dir, data_dir):
    found = data.find_corrupt("holed", data_dir=damaged_dir)
    # The order in which TFDS writes examples is its own: what remains must be readable, and nothing less will do.
    assert len(found) == 3
    bounds = [-1, *found, 16]
    kept = "+".join(f"train[{a + 1}:{b}]" for a, b in zip(bounds, bounds[1:], strict=False) if a + 1 < b)
    images, _ = arrays(data.load("holed", kept, image_size=16, batch_size=4, data_dir=damaged_dir))
    assert len(images) == 13
    for augment in (False, True):
        with pytest.raises(tf.errors.InvalidArgumentError):
            arrays(data.load("holed", image_size=16, batch_size=4, data_dir=damaged_dir, augment=augment))
    assert data.find_corrupt("varying", data_dir=data_dir) == []
    with pytest.raises(ValueError, match="has the splits .*Received: split='all'"):
        data.find_corrupt("varying", "all", data_dir=data_dir)
