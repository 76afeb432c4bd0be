"""Folders of images against Pillow and NumPy: what is read, how it is split, and what is refused."""

import base64
import json
import os
import shutil
import unicodedata
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_binaryvit import data
from keras_binaryvit.layers import ImagePreprocessor

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("tensorflow_datasets")
tf = pytest.importorskip("tensorflow")

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocessing.json"
COUNTS = {"ant": 21, "bee é": 5, "cow": 2}


def picture(height, width, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def fill(folder, counts=COUNTS, first=0):
    """Writes images whose mean is different, of several formats; names have spaces."""
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            suffix = (".png", ".JPG", ".webp", ".gif", ".bmp")[index % 5]
            picture(20 + index, 30, 100 * label + index + first).save(folder / name / f"image {index} ü{suffix}")
    return folder


def folder_of(path):
    return f"{path}{os.sep}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = fill(tmp_path_factory.mktemp("photos"))
    (folder / ".hidden").mkdir()
    (folder / "ant" / "Thumbs.db").touch()
    (folder / "ant" / "._image.png").touch()
    return folder


PREPROCESSOR = ImagePreprocessor(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def epoch(folder, split="train", **arguments):
    arguments = {"preprocessor": PREPROCESSOR, "shuffle": False, **arguments}
    images, labels = zip(*data.load(folder, split, **arguments).as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def prepared(files):
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return np.stack([keras.ops.convert_to_numpy(PREPROCESSOR(image)) for image in images])


def as_set(images):
    return sorted(np.round(images, 3).tobytes() for images in images)


def test_classes_and_sizes(photos):
    described = data.info(photos)
    assert described.class_names == ("ant", "bee é", "cow") and described.num_classes == 3
    assert described.image_shape == (None, None, 3)
    # A tenth of each class, and one image at least.
    assert described.num_examples == {"train": 19 + 4 + 1, "validation": 2 + 1 + 1}
    assert described == data.info(folder_of(photos)) and described.name == folder_of(photos)


@pytest.mark.parametrize("cache", [True, False])
def test_every_format_is_read_as_pillow_does(photos, cache):
    images, labels = epoch(photos, "train+validation", cache=cache)
    for label, name in enumerate(COUNTS):
        files = [file for file in sorted((photos / name).iterdir()) if "image " in file.name]
        found, expected = images[labels == label], prepared(files)
        assert len(found) == len(expected)
        distance = np.abs(found[:, None] - expected[None]).max(axis=(2, 3, 4))
        assert sorted(distance.argmin(axis=1)) == list(range(len(expected))) and distance.min(axis=1).max() < 1e-4


def test_the_split_depends_on_the_names_alone(photos, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(photos, moved, copy_function=shutil.copy)
    for split in ("train", "validation"):
        for a, b in zip(epoch(photos, split), epoch(moved, split), strict=True):
            np.testing.assert_array_equal(a, b)
    names = [unicodedata.normalize("NFD", path.name) for path in sorted((moved / "bee é").iterdir())]
    for path, name in zip(sorted((moved / "bee é").iterdir()), names, strict=True):
        path.rename(path.with_name(name))
    (moved / "bee é").rename(moved / unicodedata.normalize("NFD", "bee é"))
    assert data.info(moved).class_names == ("ant", "bee é", "cow")
    np.testing.assert_array_equal(epoch(moved)[1], epoch(photos)[1])
    np.testing.assert_array_equal(epoch(moved)[0], epoch(photos)[0])


def test_every_slice_has_its_share_of_each_class(tmp_path):
    folder = fill(tmp_path / "photos", {"a": 40, "b": 20, "c": 10})
    for split in ("train[:50%]", "train[50%:]"):
        _, labels = epoch(folder, split)
        assert np.abs(np.bincount(labels) - [18, 9, 4.5]).max() <= 1
    parts = [epoch(folder, "train[1:]", shard=(host, 2), batch_size=2)[0] for host in (0, 1)]
    assert as_set(np.concatenate(parts)) == as_set(epoch(folder, "train[1:]")[0])


def test_folders_that_are_split(tmp_path):
    fill(tmp_path / "train", {"ant": 3, "bee": 2})
    fill(tmp_path / "val", {"ant": 1, "bee": 2}, first=50)
    assert data.info(tmp_path).num_examples == {"train": 5, "validation": 3}
    images, labels = epoch(tmp_path, "validation")
    files = [next((tmp_path / "val" / "ant").iterdir()), *sorted((tmp_path / "val" / "bee").iterdir())]
    assert sorted(labels) == [0, 1, 1] and as_set(images) == as_set(prepared(files))


def test_orientation(tmp_path):
    fill(tmp_path, {"a": 1, "b": 1})
    (file,) = (tmp_path / "a").iterdir()
    file.unlink()
    upright = picture(24, 36, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a" / "turned.png", exif=exif)
    images, labels = epoch(tmp_path, "train")
    expected = keras.ops.convert_to_numpy(PREPROCESSOR(np.asarray(upright)))
    np.testing.assert_allclose(images[labels == 0][0], expected, atol=1e-4)


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()), ids=lambda case: case["name"])
def test_golden(case, tmp_path):
    """What tests/golden_preprocessing.py has computed, as the tests of the layer and of the runtime have it."""
    *size, channels = case["input_shape"]
    if channels == 1:
        pytest.skip("Images of a folder are RGB.")
    described = {name: case["metadata"][name] for name in ("mean", "std", "resize_size", "interpolation")}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.jpg").write_bytes(base64.b64decode(case["image"]))
    images, _ = epoch(tmp_path, preprocessor=ImagePreprocessor(size, **described))
    expected = np.frombuffer(base64.b64decode(case["expected"]), "<f4").reshape(case["input_shape"])
    tolerance = 1.01 / 255 / min(described["std"]) if case["name"] == "turned" else 1e-4
    np.testing.assert_allclose(images, [expected, expected], atol=tolerance)


def test_random_crops_shuffled(photos):
    def epochs(first, count):
        dataset = data.load(
            photos, preprocessor=PREPROCESSOR, augment=True, batch_size=8, drop_remainder=True, first_epoch=first
        )
        return [list(dataset.as_numpy_iterator()) for _ in range(count)]

    first, second = epochs(0, 2)
    (continued,) = epochs(1, 1)
    assert not np.array_equal(first[0][0], second[0][0]) and not np.array_equal(first[0][1], second[0][1])
    for (images, labels), (again, same) in zip(second, continued, strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, same)


def test_all_paths_are_shuffled_though_images_are_not_kept(tmp_path, monkeypatch):
    """As many as a buffer of images takes would be of one class."""
    from keras_binaryvit.data import datasets

    monkeypatch.setattr(datasets, "_SHUFFLE_BUFFER", 1)
    fill(tmp_path, {"a": 10, "b": 10})
    orders = {tuple(epoch(tmp_path, shuffle=True, cache=False, seed=seed)[1]) for seed in range(3)}
    assert len(orders) == 3


def test_a_preprocessor_of_its_own(photos):
    config = data.preprocessor(photos, 28).get_config()
    assert config["resize_size"] == (32, 32) and config["mean"] == (0.485, 0.456, 0.406)
    with pytest.raises(ValueError, match="differ in size: image_size must be given"):
        data.load(photos)


def test_a_folder_called_like_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(Path("mnist"), {"a": 1, "b": 1})
    assert data.info("mnist/").class_names == ("a", "b") == data.info("./mnist").class_names
    assert len(data.preprocessor("mnist/", 16).mean) == 3
    fill(Path("mine"), {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="Unknown data set 'mine'. Did you mean 'mine/'"):
        data.info("mine")


def test_corrupt_files(photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "ant" / "image 0 ü.png").write_bytes(b"no image")
    cut = folder / "bee é" / "image 1 ü.JPG"
    cut.write_bytes(cut.read_bytes()[:200])
    found = data.find_corrupt(folder) + data.find_corrupt(folder, "validation")
    assert sorted(found) == [str(folder / "ant" / "image 0 ü.png"), str(cut)]
    for augment in (False, True):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"image . ü.* can't be read .*find_corrupt\("):
            epoch(folder, "train+validation", augment=augment)
    assert data.find_corrupt(photos) == []


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: None, "must have one subfolder per class"),
        (lambda folder: fill(folder, {"a": 2}), r"two or more.*folders \['a'\]"),
        (lambda folder: (fill(folder, {"a": 1, "b": 1}), (folder / "x.png").touch()), r"the files \['x.png'\]"),
        (lambda folder: fill(folder, {"a": 2, "b": 0}), "b' has no images"),
        (
            lambda folder: (fill(folder, {"a": 2, "b": 1}), (folder / "b" / "x.heic").touch()),
            "x.heic' is in the folder",
        ),
        (
            lambda folder: (fill(folder, {"a": 2, "b": 1}), (folder / "b" / "c").mkdir()),
            "c' is in the folder of a class",
        ),
        (
            lambda folder: (fill(folder / "train", {"a": 1, "b": 1}), fill(folder / "test", {"a": 1, "c": 1})),
            r"Only in train: \['b'\]; only in test: \['c'\]",
        ),
        (
            lambda folder: (fill(folder / "train", {"a": 1, "b": 1}), (folder / "notes").mkdir()),
            r"split 'train', and beside it \['notes'\]",
        ),
        (
            lambda folder: [fill(folder / name, {"a": 1, "b": 1}) for name in ("val", "validation")],
            "both 'val' and 'validation'",
        ),
    ],
)
def test_folders_that_are_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        data.info(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder '.*nowhere/'"):
        data.load(folder_of(tmp_path / "nowhere"))


def test_a_class_called_train(tmp_path):
    fill(tmp_path, {"car": 2, "train": 2})
    assert data.info(tmp_path).class_names == ("car", "train")
