"""info, preprocessor, load and find_corrupt: labeled images of digits, folders, and TensorFlow Datasets (TFDS).

`load` never downloads. The default data set, `digits`, comes with scikit-learn; a folder has one subfolder per class;
every other name is looked up among the data sets that TFDS has already prepared in `data_dir`.
"""

import numbers
import os
import re
from typing import TYPE_CHECKING

from keras_binaryvit.data.augmentation import augment_batch, random_window
from keras_binaryvit.data.image_folder import ImageFolder
from keras_binaryvit.data.sources import DatasetInfo, Digits, Prepared, base_name, is_folder, require
from keras_binaryvit.layers import ImagePreprocessor
from keras_binaryvit.layers.validation import positive_integer

if TYPE_CHECKING:
    import tensorflow as tf

# Channel means and standard deviations of the training images, on the scale 0 to 1.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GRAYSCALE = ((0.449,), (0.226,))  # the means of ImageNet's
_CONSTANTS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "digits": ((0.3052,), (0.3760,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "mnist": ((0.1307,), (0.3081,)),
}
# A mirrored character is another character, or none.
_NEVER_FLIPPED = (
    "binarized_mnist binary_alpha_digits cmaterdb digits emnist kmnist mnist mnist_corrupted omniglot svhn_cropped"
).split()
_AUGMENTATIONS = (False, True, "random_resized_crop", "pad_crop")
_CACHE_LIMIT = 2**30  # bytes
_SHUFFLE_BUFFER = 4096  # images, where the split isn't held in memory: half a gigabyte of ImageNet


def info(name: str | os.PathLike = "digits", data_dir: str | os.PathLike | None = None) -> DatasetInfo:
    """Describes a data set.

    A folder of images has one subfolder per class, such as `photos/cat/` and `photos/dog/`, or folders `train` and
    `validation` (or `val`) or `test` with these in them. Without these folders, a tenth of each class is the split
    `validation`, chosen by the files' names, and the others are the split `train`. Files of a split are in an order in
    which every slice, such as `train[:10%]`, has its share of each class. Images are JPEG, PNG, WebP, GIF (the first
    frame) or BMP files; they are RGB, and EXIF orientation is applied. Hidden files are ignored.

    Args:
        name: `digits`; a folder of images, which ends in `/` or begins with `/`, `.` or `~`, or is a `Path`; or a TFDS
            name such as `cifar10`, `imagenet2012` or `mnist_corrupted/fog:1.0.0`.
        data_dir: Folder of prepared TFDS data sets, local or in a file system that TensorFlow reads, such as
            `gs://bucket/folder`; `None` means TFDS's default. Only TFDS names use it.

    Raises:
        ValueError: No data set has this name, or it isn't one of images (uint8, grayscale or RGB) with class labels; or
            the folder has no classes, an empty one, other files than images, or other classes in another split.
        FileNotFoundError: The folder doesn't exist, or `data_dir` doesn't, or it doesn't hold the data set.
        ImportError: A package is missing; the message names the extra that installs it.
    """
    return _source(name, data_dir).info


def preprocessor(
    name: str | os.PathLike = "digits", image_size: int | None = None, *, data_dir: str | os.PathLike | None = None
) -> ImagePreprocessor:
    """Returns the preprocessor of a data set, for `load` and for models that learn from it.

    Mean and standard deviation are those of the data set where they are well known, and ImageNet's for every other.
    Images of differing sizes are resized to round(image_size * 256 / 224) pixels (bicubic) and cropped in the center,
    as the paper evaluates; images stored in one size are resized to `image_size` (bilinear).

    Args:
        name: See `info`.
        image_size: Height and width to make, in pixels; `None` means as stored.
        data_dir: See `info`.

    Raises:
        ValueError: `image_size` isn't given where images differ in size; for others, and for FileNotFoundError and
            ImportError, see `info`.
    """
    return _preprocessor(info(name, data_dir), image_size)


def _preprocessor(described, image_size):
    if image_size is not None:
        positive_integer("image_size", image_size)
    *stored_size, channels = described.image_shape
    mean, std = _CONSTANTS.get(base_name(described.name), _GRAYSCALE if channels == 1 else _IMAGENET)
    if None not in stored_size:
        return ImagePreprocessor(image_size or stored_size, mean, std)
    if image_size is None:
        raise ValueError(f"Images of {described.name!r} differ in size: image_size must be given.")
    short_side = round(image_size * 256 / 224)
    return ImagePreprocessor(image_size, mean, std, resize_size=short_side, interpolation="bicubic")


def load(
    name: str | os.PathLike = "digits",
    split: str = "train",
    *,
    batch_size: int = 128,
    preprocessor: ImagePreprocessor | None = None,
    image_size: int | None = None,
    augment: bool | str = False,
    data_dir: str | os.PathLike | None = None,
    shuffle: bool | None = None,
    seed: int = 0,
    cache: bool | str | os.PathLike | None = None,
    drop_remainder: bool = False,
    first_epoch: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> "tf.data.Dataset":
    """Reads a split as batches of normalized images and labels, ready for `model.fit` on every Keras backend.

    Without augmentation, images are what `preprocessor` gives.

    Batches are reproducible: a call with the same arguments gives the same batches in the first epoch, the same in the
    second, and so on, while the epochs differ from one another. (TensorFlow mixes its global seed into `seed`.) An
    iterator of which no batch is taken doesn't count as an epoch.

    Args:
        name: See `info`.
        data_dir: See `info`.
        split: A split, a slice of one in TFDS's notation (`train[:1000]`, `train[10%:20%]`), or a sum of such with `+`.
        batch_size: Images in a batch, of all hosts together.
        preprocessor: How images become what a model takes, such as `model.preprocessor`; `None` means that of the data
            set for `image_size`, see the function `preprocessor`.
        image_size: Height and width to make without a `preprocessor`, in pixels; `None` means as stored.
        augment: `"random_resized_crop"` (8 to 100 % of the area, aspect 3/4 to 4/3), `"pad_crop"` (a crop out of the
            image with a black border of an eighth of its size), False for none, True for the one that is usual: crops
            of padded images where all are stored in one size, resized crops where not. Either flips half of the
            images left to right, except data sets of characters.
        shuffle: `None` means where `split` starts with `train`.
        seed: Of shuffling and augmentation, together with the global seed of `keras.utils.set_random_seed`.
        cache: True keeps in memory what is the same in every epoch: decoded images, or the encoded ones where random
            crops are decoded from them (files of a folder are left to the system's cache). `None` does so below 1 GiB,
            False never. A path keeps it in that file, of which every combination of data set, split, preprocessor,
            augment and shard needs its own.
        drop_remainder: Leave out the last batch if it isn't full.
        first_epoch: The epoch to start with, counted from 0, for training that continues: the batches of the first
            pass are those that a data set from the start gives in its pass `first_epoch`.
        shard: (host, hosts), for training on several hosts: this one, counted from 0, reads the host-th of equal parts
            of each split, and has batches of `batch_size / hosts` images. All have the same number of batches. No
            example is in two parts; with `drop_remainder` up to `hosts - 1` of a split are in none. Which examples meet
            in a batch depends on the number of hosts.

    Returns:
        A `tf.data.Dataset` of (images, labels): float32 `(batch, height, width, channels)`, normalized, and int32
        `(batch,)`.

    An image that can't be decoded ends the epoch with TensorFlow's error; `find_corrupt` finds all.

    Raises:
        ValueError: An argument is out of its range, the preprocessor takes images with other channels, or neither
            `preprocessor` nor `image_size` is given where images differ in size; for others, and for FileNotFoundError
            and ImportError, see `info`.
    """
    positive_integer("batch_size", batch_size)
    if isinstance(first_epoch, bool) or not isinstance(first_epoch, numbers.Integral) or first_epoch < 0:
        raise ValueError(f"first_epoch must be an integer, 0 or more. Received: first_epoch={first_epoch!r}")
    if augment not in _AUGMENTATIONS:
        raise ValueError(f"augment must be one of {_AUGMENTATIONS}. Received: augment={augment!r}")
    source = _source(name, data_dir)
    *stored_size, channels = source.info.image_shape
    if preprocessor is None:
        preprocessor = _preprocessor(source.info, image_size)
    elif image_size is not None:
        raise ValueError(f"The preprocessor says the size of the images. Received: image_size={image_size} beside it")
    if len(preprocessor.mean) != channels:
        given = len(preprocessor.mean)
        raise ValueError(
            f"Images of {source.info.name!r} have {channels} channels. Received: a preprocessor of {given}"
        )
    size = preprocessor.image_size
    varying = None in stored_size
    resizes = not tuple(stored_size) == size == preprocessor.resize_size
    if augment is True:
        augment = "random_resized_crop" if varying else "pad_crop"
    flip = base_name(source.info.name) not in _NEVER_FLIPPED
    if shuffle is None:
        shuffle = split.startswith("train")
    ranges = _ranges(source, split, shard, drop_remainder)
    host, hosts = shard
    if batch_size % hosts:
        raise ValueError(f"batch_size must be a multiple of the {hosts} hosts of shard={shard}. Received: {batch_size}")
    seed += host  # otherwise all hosts would augment alike
    count = sum(stop - start for _, start, stop in ranges)

    tf = require("tensorflow", "tensorflow")
    parallel = {"num_parallel_calls": tf.data.AUTOTUNE}
    crops_stored = varying and augment == "random_resized_crop"
    if cache is None:
        cache = count * channels * size[0] * size[1] * (4 if resizes and not crops_stored else 1) < _CACHE_LIMIT

    def skip_epochs(dataset):
        # A new iterator takes the seeds of the next epoch and reads nothing yet; what a shuffle reads from takes its
        # own later, with the first example.
        for _ in range(first_epoch):
            iter(dataset)
        return dataset

    def by_epoch(dataset):
        # Behind flat_map the iterator is made with the first example: those that Keras makes and never reads, which
        # depend on the backend, are no epochs.
        lazy = tf.data.Dataset.from_tensors(0).flat_map(lambda _: dataset)
        return lazy.apply(tf.data.experimental.assert_cardinality(skip_epochs(dataset).cardinality()))

    def with_seeds(dataset):
        # New numbers in every epoch, the same in every run.
        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
        return tf.data.Dataset.zip(dataset, by_epoch(seeds))

    def decode(image, label):
        image = source.decode(image)
        return (preprocessor.resize(image) if resizes else image), label

    def decode_crop(example, seed):
        image, label = example
        part = source.decode_window(image, lambda shape: random_window(seed, shape))
        return tf.image.resize(part, size, "bilinear", antialias=True), label

    def finish(images, labels, seed=None):
        images = tf.cast(images, tf.float32)
        if seed is not None:
            images = augment_batch(images, None if crops_stored else augment, flip, seed)
        return preprocessor.normalize(images), tf.cast(labels, tf.int32)

    # Whatever is random comes after the cache, and what is cheap for a whole batch after batching.
    dataset = skip_epochs(source.read(ranges, shuffle_files=shuffle and not cache, seed=seed))
    if cache:
        dataset = dataset if crops_stored else dataset.map(decode, **parallel)
        dataset = dataset.cache("" if cache is True else os.fspath(cache))
    if shuffle:
        everything = cache or source.in_memory
        dataset = by_epoch(dataset.shuffle(count if everything else min(count, _SHUFFLE_BUFFER), seed=seed))
    if crops_stored:
        dataset = with_seeds(dataset).map(decode_crop, **parallel)
    elif not cache:
        dataset = dataset.map(decode, **parallel)
    dataset = dataset.batch(batch_size // hosts, drop_remainder=drop_remainder)
    if augment:
        dataset = with_seeds(dataset).map(lambda batch, seed: finish(batch[0], batch[1], seed), **parallel)
    else:
        dataset = dataset.map(finish, **parallel)
    return dataset.prefetch(tf.data.AUTOTUNE)


def find_corrupt(
    name: str | os.PathLike, split: str = "train", *, data_dir: str | os.PathLike | None = None
) -> list[int] | list[str]:
    """Finds the images of a split that can't be decoded, any of which would end a training in the middle of an epoch.

    Of a folder, remove or replace the files. A split without example 57, counted from 0, is `"train[:57]+train[58:]"`.

    Args:
        name: See `info`.
        data_dir: See `info`.
        split: A whole split, such as `train`.

    Returns:
        Their positions in the split, in the order of the files; of a folder of images, their paths.

    Raises:
        ValueError: `split` isn't one; for others, and for FileNotFoundError and ImportError, see `info`.
    """
    source = _source(name, data_dir)
    sizes = source.info.num_examples
    if split not in sizes:
        raise ValueError(f"{name!r} has the splits {list(sizes)}. Received: split={split!r}")
    tf = require("tensorflow", "tensorflow")

    def decode(position, example):
        # Something of the pixels, or nothing would be decoded.
        return position, tf.reduce_max(source.decode(example[0]))

    dataset = source.read([(split, 0, sizes[split])], in_order=True)
    decodable = dataset.enumerate().map(decode, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    found = {int(position) for position, _ in decodable.as_numpy_iterator()}
    positions = sorted(set(range(sizes[split])) - found)
    return [source.file(split, position) for position in positions] if isinstance(source, ImageFolder) else positions


def _source(name, data_dir):
    if name == "digits":
        return Digits()
    if isinstance(name, os.PathLike):
        name = os.path.join(name, "")
    return ImageFolder(name) if is_folder(name) else Prepared(name, data_dir)


def _ranges(source, split, shard, drop_remainder):
    """Returns one host's part of a split, as (split, first, one after the last) of TFDS."""
    tfds = require("tensorflow_datasets", "data")
    pair = isinstance(shard, tuple | list) and len(shard) == 2 and all(isinstance(n, numbers.Integral) for n in shard)
    if not pair or not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard must be (host, hosts), the host from 0 to hosts - 1. Received: shard={shard!r}")
    host, hosts = shard
    name, sizes = source.info.name, source.info.num_examples

    def absolute(instruction):
        parts = tfds.core.ReadInstruction.from_spec(instruction).to_absolute(source.splits)
        return [(p.splitname, p.from_ or 0, sizes[p.splitname] if p.to is None else p.to) for p in parts]

    slices = [[bound for bound in bounds.split(":") if bound] for bounds in re.findall(r"\[(.*?)\]", split)]
    if any(len({bound.endswith("%") for bound in bounds}) > 1 for bounds in slices):  # TFDS takes both for percentages
        raise ValueError(f"Both bounds of a slice must be percentages, or neither. Received: split={split!r}")
    try:
        whole = absolute(split)
    except (ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[-1]
        raise ValueError(f"{name!r} has the splits {sizes}. Received: split={split!r}. {reason}") from error
    if any(start >= stop for _, start, stop in whole):
        raise ValueError(
            f"{name!r} has the splits {sizes}. Received: split={split!r}, which is empty or has empty parts"
        )
    parts = [absolute(part) for part in tfds.even_splits(split, hosts, drop_remainder=drop_remainder)]
    lengths = {sum(stop - start for _, start, stop in part) for part in parts}
    if len(lengths) > 1 or lengths == {0}:
        raise ValueError(
            f"{hosts} hosts can't share split={split!r} evenly: choose one whose length is a multiple of {hosts}, or "
            f"leave out the remainder with drop_remainder=True. {name!r} has the splits {sizes}."
        )
    return [(part, start, stop) for part, start, stop in parts[host] if start < stop]
