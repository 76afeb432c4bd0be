"""Data sets of a few images, which TFDS writes into a folder, and what tests read of them."""

import io

import numpy as np
import pytest
from PIL import Image

from keras_binaryvit import data
from keras_binaryvit.layers import ImagePreprocessor

tfds = pytest.importorskip("tensorflow_datasets")

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
