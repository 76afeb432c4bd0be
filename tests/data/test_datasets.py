"""info, preprocessor, load and find_corrupt, on data sets of a few images which TFDS writes into a temporary folder."""

import json
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from small_data_sets import arrays, encode, pixels, smooth_image, stored, write

from keras_binaryvit import data
from keras_binaryvit.layers import ImagePreprocessor

tfds = pytest.importorskip("tensorflow_datasets")
tf = pytest.importorskip("tensorflow")
pytest.importorskip("sklearn")


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
