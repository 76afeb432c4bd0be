"""Labelled images for training and evaluation, as `tf.data` pipelines: scikit-learn's digits and TensorFlow Datasets.

`load` never downloads. The default data set, `digits`, comes with scikit-learn; every other name is looked up among the
data sets which TensorFlow Datasets (TFDS) has already prepared in `data_dir`.
"""

import dataclasses
import difflib
import importlib
import math
import numbers
import os
import re
import typing

import numpy as np

if typing.TYPE_CHECKING:
    import tensorflow as tf

# Channel means and standard deviations of the training images, on the scale 0 to 1.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
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


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a data set holds.

    Attributes:
        name: as it was asked for.
        num_classes: number of labels, which run from 0 to `num_classes - 1`.
        class_names: their names.
        image_shape: (height, width, channels) as stored; height and width are None where images differ in size.
        num_examples: number of examples in each split.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    num_examples: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before a model sees it.

    The image is resized, cropped in the centre to what the model takes, and normalised: (image / 255 - mean) / std.

    Attributes:
        mean: of each channel, on the scale 0 to 1.
        std: standard deviation of each channel, on the same scale.
        resize: pixels to make of the short side; None means as many as the crop has.
        interpolation: "bilinear" or "bicubic".
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: str = "bilinear"


def info(name: str = "digits", data_dir: str | os.PathLike | None = None) -> DatasetInfo:
    """Describe a data set.

    Args:
        name: `digits`, or a TFDS name such as `cifar10`, `imagenet2012` or `mnist_corrupted/fog:1.0.0`.
        data_dir: folder of prepared TFDS data sets, local or in a file system that TensorFlow reads, such as
            `gs://bucket/folder`; None means TFDS's default. `digits` doesn't use it.

    Raises:
        ValueError: no data set has this name, or it isn't one of images (uint8, grey or RGB) with class labels.
        FileNotFoundError: `data_dir` doesn't exist or doesn't hold the data set.
        ImportError: a package is missing; the message names the extra which installs it.
    """
    if name == "digits":
        splits = _digits()
        sizes = {split: len(labels) for split, (_, labels) in splits.items()}
        return DatasetInfo(name, 10, tuple("0123456789"), splits["train"][0].shape[1:], sizes)
    stored = _builder(name, data_dir).info
    label = stored.features["label"]
    sizes = {split: stored.splits[split].num_examples for split in stored.splits}
    return DatasetInfo(name, label.num_classes, tuple(label.names), tuple(stored.features["image"].shape), sizes)


def preprocessing(
    name: str = "digits", image_size: int | None = None, data_dir: str | os.PathLike | None = None
) -> Preprocessing:
    """Describe what `load` does with these arguments and without augmentation, for programs which can't call it.

    For images stored in one size that isn't square, which `load` stretches, a crop is described.

    Raises:
        ValueError: `image_size` isn't given where images differ in size; for others, and for FileNotFoundError and
            ImportError, see `info`.
    """
    described = info(name, data_dir)
    # The shortest decimal that is the float32, not the digits of a float64 that no one wrote.
    mean, std = (tuple(float(str(value)) for value in row) for row in _constants(name, described.image_shape[-1]))
    if None not in described.image_shape:
        return Preprocessing(mean, std)
    if image_size is None:
        raise ValueError(f"Images of {name!r} differ in size: image_size must be given.")
    return Preprocessing(mean, std, _short_side(image_size), "bicubic")


def load(
    name: str = "digits",
    split: str = "train",
    *,
    batch_size: int = 128,
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
    """Read a split as batches of normalised images and labels, ready for `model.fit` on every Keras backend.

    Without augmentation, images stored in one size are resized (bilinear). Images of differing sizes are resized to
    round(image_size * 256 / 224) pixels on the short side (bicubic) and cropped in the centre, as the paper evaluates.

    Batches are reproducible: a call with the same arguments gives the same batches in the first epoch, the same in the
    second, and so on, while the epochs differ from one another. (TensorFlow mixes its global seed into `seed`.) An
    iterator of which no batch is taken doesn't count as an epoch.

    Args:
        name: see `info`.
        data_dir: see `info`.
        split: a split, a slice of one in TFDS's notation (`train[:1000]`, `train[10%:20%]`), or a sum of such with `+`.
        batch_size: images in a batch, of all hosts together.
        image_size: height and width to make, in pixels; None means as stored.
        augment: `"random_resized_crop"` (8 to 100 % of the area, aspect 3/4 to 4/3), `"pad_crop"` (a crop out of the
            image with a black border of an eighth of its size), False for none, True for the one that is usual: crops
            of padded images where all are stored in one size, resized crops where not. Either flips half of the
            images left to right, except data sets of characters.
        shuffle: None means where `split` starts with `train`.
        seed: of shuffling and augmentation.
        cache: True keeps in memory what is the same in every epoch: decoded images, or the encoded ones where random
            crops are decoded from them. None does so below 1 GiB, False never. A path keeps it in that file, of which
            every combination of data set, split, image_size, augment and shard needs its own.
        drop_remainder: leave out the last batch if it isn't full.
        first_epoch: the epoch to start with, counted from 0, for training that continues: the batches of the first
            pass are those which a data set from the start gives in its pass `first_epoch`.
        shard: (host, hosts), for training on several hosts: this one, counted from 0, reads the host-th of equal parts
            of the split, and has batches of `batch_size / hosts` images. All have the same number of batches. No
            example is in two parts; with `drop_remainder` up to `hosts - 1` are in none. Which examples meet in a batch
            depends on the number of hosts.

    Returns:
        A `tf.data.Dataset` of (images, labels): float32 [batch, height, width, channels], see `normalize`, and int32
        [batch].

    An image which can't be decoded ends the epoch with TensorFlow's error; `damaged` finds all.

    Raises:
        ValueError: an argument is out of its range, or `image_size` isn't given where images differ in size; for
            others, and for FileNotFoundError and ImportError, see `info`.
    """
    _check_positive("batch_size", batch_size)
    if image_size is not None:
        _check_positive("image_size", image_size)
    if isinstance(first_epoch, bool) or not isinstance(first_epoch, numbers.Integral) or first_epoch < 0:
        raise ValueError(f"first_epoch must be an integer from 0 on, not {first_epoch!r}.")
    if augment not in _AUGMENTATIONS:
        raise ValueError(f"augment must be one of {_AUGMENTATIONS}, not {augment!r}.")
    described = info(name, data_dir)
    *stored_size, channels = described.image_shape
    varying = None in stored_size
    if varying and image_size is None:
        raise ValueError(f"Images of {name!r} differ in size: image_size must be given.")
    size = (image_size, image_size) if image_size else tuple(stored_size)
    if augment is True:
        augment = "random_resized_crop" if varying else "pad_crop"
    flip = _base_name(name) not in _NEVER_FLIPPED
    if shuffle is None:
        shuffle = split.startswith("train")
    ranges = _parse_split(split, described)
    if shard != (0, 1):
        ranges, batch_size = _share(ranges, batch_size, shard, drop_remainder)
        split = "+".join(f"{part}[{start}:{stop}]" for part, start, stop in ranges)
        seed += shard[0]  # otherwise all hosts would augment alike
    count = sum(stop - start for _, start, stop in ranges)

    tf = _require("tensorflow", "tensorflow")
    parallel = {"num_parallel_calls": tf.data.AUTOTUNE}
    crop_encoded = varying and augment == "random_resized_crop"
    if cache is None:
        height, width = size if varying else stored_size
        cache = count * channels * (height or 0) * (width or 0) < _CACHE_LIMIT

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
        if image.dtype == tf.string:
            image = tf.io.decode_image(image, channels=channels, expand_animations=False)
            image = tf.ensure_shape(image, described.image_shape)
        return (_center_crop(image, image_size) if varying else image), label

    def decode_crop(example, seed):
        image, label = example
        return _random_resized_decode(image, image_size, channels, seed), label

    def finish(images, labels, seed=None):
        images = tf.cast(images, tf.float32)
        if tuple(images.shape[1:3]) != size:
            # Antialiasing changes nothing for growing images, and is slow.
            shrinks = math.prod(size) < math.prod(stored_size)
            images = tf.image.resize(images, size, "bilinear", antialias=shrinks)
        if seed is not None:
            images = _augment(images, None if crop_encoded else augment, flip, seed)
        return _normalize(images, name), tf.cast(labels, tf.int32)

    # Whatever is random comes after the cache, and what is cheap for a whole batch after batching.
    dataset = skip_epochs(_read(name, split, ranges, data_dir, shuffle_files=shuffle and not cache, seed=seed))
    if cache:
        dataset = dataset if crop_encoded else dataset.map(decode, **parallel)
        dataset = dataset.cache("" if cache is True else os.fspath(cache))
    if shuffle:
        dataset = by_epoch(dataset.shuffle(count if cache else min(count, _SHUFFLE_BUFFER), seed=seed))
    if crop_encoded:
        dataset = with_seeds(dataset).map(decode_crop, **parallel)
    elif not cache:
        dataset = dataset.map(decode, **parallel)
    dataset = dataset.batch(batch_size, drop_remainder=drop_remainder)
    if augment:
        dataset = with_seeds(dataset).map(lambda batch, seed: finish(batch[0], batch[1], seed), **parallel)
    else:
        dataset = dataset.map(finish, **parallel)
    return dataset.prefetch(tf.data.AUTOTUNE)


def damaged(name: str, split: str = "train", *, data_dir: str | os.PathLike | None = None) -> list[int]:
    """Find the images of a split which can't be decoded, any of which would end a training in the middle of an epoch.

    A split without example 57, counted from 0, is `"train[:57]+train[58:]"`.

    Args:
        name: see `info`.
        data_dir: see `info`.
        split: a whole split, such as `train`.

    Returns:
        Their positions in the split, in the order of the files.

    Raises:
        ValueError: `split` isn't one; for others, and for FileNotFoundError and ImportError, see `info`.
    """
    described = info(name, data_dir)
    if split not in described.num_examples:
        raise ValueError(f"{described.name!r} has {list(described.num_examples)} and no split {split!r}.")
    tf = _require("tensorflow", "tensorflow")

    def decode(position, example):
        image = example[0]
        if image.dtype == tf.string:
            image = tf.io.decode_image(image, channels=described.image_shape[-1], expand_animations=False)
        return position, tf.reduce_max(image)  # something of the pixels, or nothing would be decoded

    dataset = _read(name, split, _parse_split(split, described), data_dir, shuffle_files=False, seed=0, in_order=True)
    decodable = dataset.enumerate().map(decode, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    found = {int(position) for position, _ in decodable.as_numpy_iterator()}
    return sorted(set(range(described.num_examples[split])) - found)


def normalize(images: np.ndarray, name: str) -> np.ndarray:
    """Scale uint8 [..., channels] as `load` does: float32 (images / 255 - mean) / std.

    The channels' mean and standard deviation are those of the data set `name` where they are well known, and ImageNet's
    for every other.

    Raises:
        ValueError: the images have a number of channels which the data set doesn't have.
    """
    return _normalize(np.asarray(images, np.float32), name)


def denormalize(images: np.ndarray, name: str) -> np.ndarray:
    """Turn normalised images, float [..., channels], into uint8 ones to look at: the inverse of `normalize`."""
    images = np.asarray(images, np.float32)
    mean, std = _constants(name, images.shape[-1])
    return np.clip(np.rint((images * std + mean) * 255), 0, 255).astype(np.uint8)


def _normalize(images, name):
    mean, std = _constants(name, images.shape[-1])
    return (images - 255 * mean) / (255 * std)


def _constants(name, channels):
    grey = ((np.mean(_IMAGENET[0]),), (np.mean(_IMAGENET[1]),))
    constants = _CONSTANTS.get(_base_name(name), grey if channels == 1 else _IMAGENET)
    if channels != len(constants[0]):
        raise ValueError(f"Images of {name!r} have {len(constants[0])} channels, not {channels}.")
    return np.asarray(constants, np.float32)


def _base_name(name):
    """Leave out the config and the version of a TFDS name."""
    return re.split("[/:]", name)[0]


def _check_positive(argument, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{argument} must be a positive integer, not {value!r}.")


def _require(module, extra):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f"This needs {package}: pip install keras-binaryvit[{extra}]") from error


def _parse_split(split, described):
    """Turn `train[:10%]+test` into [(split, start, stop), ...], rounding percentages as TFDS does."""
    ranges = []
    for part in split.split("+"):
        match = re.fullmatch(r"\s*(\w+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*", part)
        # TFDS takes both bounds of train[3%:55] for percentages.
        if not match or len({bound.endswith("%") for bound in match.groups()[1:] if bound}) > 1:
            raise ValueError(f"Can't read split {split!r}; write it like 'train[:1000]' or 'train[10%:]+test'.")
        split_name, *bounds = match.groups()
        if split_name not in described.num_examples:
            raise ValueError(f"{described.name!r} has {list(described.num_examples)} and no split {split_name!r}.")
        total = described.num_examples[split_name]
        start, stop = (_parse_bound(bound, total, default) for bound, default in zip(bounds, (0, total), strict=True))
        if not 0 <= start < stop <= total:
            raise ValueError(f"Split {part!r} of {described.name!r} is empty or outside its {total} examples.")
        ranges.append((split_name, start, stop))
    return ranges


def _parse_bound(bound, total, default):
    if bound is None:
        return default
    value = round(int(bound[:-1]) * total / 100) if bound.endswith("%") else int(bound)
    return max(0, total + value) if value < 0 else value


def _share(ranges, batch_size, shard, drop_remainder):
    """Return the ranges of one host's part of `ranges`, and its part of `batch_size`."""
    pair = isinstance(shard, tuple | list) and len(shard) == 2 and all(isinstance(n, numbers.Integral) for n in shard)
    if not pair or not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard must be (host, hosts), the host from 0 to hosts - 1, not {shard!r}.")
    host, hosts = shard
    if batch_size % hosts:
        raise ValueError(f"batch_size must be a multiple of the {hosts} hosts of shard={shard!r}, not {batch_size}.")
    count = sum(stop - start for _, start, stop in ranges)
    size = count // hosts
    if size == 0 or (count % hosts and not drop_remainder):
        raise ValueError(
            f"{hosts} hosts can't share {count} examples evenly: choose a split whose length is a multiple of {hosts}, "
            f"or leave out {count % hosts} of them with drop_remainder=True."
        )
    parts, before = [], 0
    for split, start, stop in ranges:
        lower, upper = max(host * size, before), min((host + 1) * size, before + stop - start)
        if lower < upper:
            parts.append((split, start + lower - before, start + upper - before))
        before += stop - start
    return parts, batch_size // hosts


def _digits():
    """Return {split: (uint8 [examples, 8, 8, 1], int64 [examples])}; every fifth example of a class is for the test."""
    digits = _require("sklearn.datasets", "examples").load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    test = np.zeros(len(images), bool)
    for label in range(10):
        test[np.flatnonzero(digits.target == label)[4::5]] = True
    return {"train": (images[~test], digits.target[~test]), "test": (images[test], digits.target[test])}


def _builder(name, data_dir):
    """Find a prepared TFDS data set. Only files are looked at, so that nothing can be downloaded."""
    if data_dir is not None:
        data_dir = os.path.expanduser(data_dir)  # in Python no shell does it
    remote = data_dir is not None and "://" in os.fspath(data_dir)
    is_folder = _require("tensorflow", "tensorflow").io.gfile.isdir if remote else os.path.isdir
    if data_dir is not None and not is_folder(data_dir):
        unless = " or TensorFlow doesn't read such addresses" if remote else ""
        raise FileNotFoundError(f"data_dir {os.fspath(data_dir)!r} doesn't exist{unless}.")
    tfds = _require("tensorflow_datasets", "data")
    try:
        # Not tfds.builder: it asks for the version which the installed TFDS would write, not for the one that is there.
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        if _base_name(name) not in known:
            close = difflib.get_close_matches(_base_name(name), known)
            hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise ValueError(
                f"Unknown data set {name!r}. {hint}tensorflow_datasets.list_builders() gives all names."
            ) from error
        where = "" if data_dir is None else f", data_dir={os.fspath(data_dir)!r}"
        raise FileNotFoundError(
            f"{name!r} isn't prepared in {'the default data_dir' if data_dir is None else repr(os.fspath(data_dir))}. "
            f'Run: python -c "import tensorflow_datasets as tfds; tfds.load({name!r}{where})"'
        ) from error
    features = dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    is_image = isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8 and image.shape[-1] in (1, 3)
    if not (is_image and isinstance(label, tfds.features.ClassLabel)):
        raise ValueError(
            f"{name!r} needs an 'image' (uint8, grey or RGB) and a 'label' to classify it by; it has {features}."
        )
    return builder


def _read(name, split, ranges, data_dir, shuffle_files, seed, in_order=False):
    """Return a `tf.data.Dataset` of (image, label); the image is uint8 for digits and still encoded for others."""
    if name == "digits":
        tf = _require("tensorflow", "tensorflow")
        splits = _digits()
        parts = [[array[start:stop] for array in splits[split]] for split, start, stop in ranges]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return tf.data.Dataset.from_tensor_slices((images, labels))
    tfds = _require("tensorflow_datasets", "data")
    dataset = _builder(name, data_dir).as_dataset(
        split=split,
        shuffle_files=shuffle_files,
        decoders=tfds.decode.PartialDecoding({"image": True, "label": True}, {"image": tfds.decode.SkipDecoding()}),
        # Several files are read by turns unless the order counts.
        read_config=tfds.ReadConfig(
            shuffle_seed=seed, try_autocache=False, **({"interleave_cycle_length": 1} if in_order else {})
        ),
    )
    return dataset.map(lambda example: (example["image"], example["label"]))


def _resize(image, size, method):
    """Resize uint8 [height, width, channels] with antialiasing, to uint8."""
    import tensorflow as tf

    return tf.saturate_cast(tf.round(tf.image.resize(image, size, method, antialias=True)), tf.uint8)


def _short_side(size):
    return round(size * 256 / 224)


def _center_crop(image, size):
    """Resize uint8 [height, width, channels] to round(size * 256 / 224) on the short side; crop size x size in it."""
    import tensorflow as tf

    shape = tf.shape(image)[:2]
    resized = _short_side(size) * shape // tf.reduce_min(shape)
    image = _resize(image, resized, "bicubic")
    top, left = tf.unstack((resized - size) // 2)
    return tf.ensure_shape(image[top : top + size, left : left + size], (size, size, image.shape[-1]))


def _random_boxes(seed, count, height, width):
    """Draw crops of 8 to 100 % of the area and aspect 3/4 to 4/3: float32 top, left, height and width, each [count].

    As in torchvision, the first of ten draws that fits counts; the area is limited where none does.
    """
    import tensorflow as tf

    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    draws = tf.random.stateless_uniform((count, 10, 4), seed)
    area = (0.08 + 0.92 * draws[..., 0]) * height * width
    aspect = tf.exp((2 * draws[..., 1] - 1) * math.log(4 / 3))
    largest = tf.minimum(width**2 / aspect, height**2 * aspect)
    first = tf.argmax(area <= largest, axis=1)
    area, aspect = (tf.gather(values, first, batch_dims=1) for values in (tf.minimum(area, largest), aspect))
    box_height, box_width = tf.sqrt(area / aspect), tf.sqrt(area * aspect)
    y, x = draws[:, 0, 2], draws[:, 0, 3]
    return y * (height - box_height), x * (width - box_width), box_height, box_width


def _random_resized_decode(encoded, size, channels, seed):
    """Decode a random part of an image, resized to uint8 [size, size, channels]; of a JPEG no more than this part."""
    import tensorflow as tf

    def window(shape):
        top, left, height, width = (value[0] for value in _random_boxes(seed, 1, shape[0], shape[1]))
        top, left, bottom, right = tf.unstack(tf.cast([top, left, top + height, left + width], tf.int32))
        return tf.stack([top, left, tf.maximum(bottom - top, 1), tf.maximum(right - left, 1)])

    def crop_jpeg():
        return tf.io.decode_and_crop_jpeg(encoded, window(tf.io.extract_jpeg_shape(encoded)), channels=channels)

    def crop_other():
        image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
        top, left, height, width = tf.unstack(window(tf.shape(image)))
        return image[top : top + height, left : left + width]

    image = tf.cond(tf.io.is_jpeg(encoded), crop_jpeg, crop_other)
    return tf.ensure_shape(_resize(image, (size, size), "bilinear"), (size, size, channels))


def _augment(images, augment, flip, seed):
    """Crop float32 [batch, height, width, channels] to the same size and flip half of it, in one bilinear sampling."""
    import tensorflow as tf

    count = tf.shape(images)[0]
    height, width = images.shape[1:3]
    ones, zeros = tf.ones([count]), tf.zeros([count])
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
    if augment == "random_resized_crop":
        top, left, box_height, box_width = _random_boxes(crop_seed, count, height, width)
    else:
        reach = tf.constant([[height // 8], [width // 8]] if augment == "pad_crop" else [[0], [0]])
        draws = tf.random.stateless_uniform((2, count), crop_seed, minval=None, maxval=None, dtype=tf.int32)
        offsets = tf.cast(draws % (2 * reach + 1) - reach, tf.float32)
        (top, left), box_height, box_width = tf.unstack(offsets), height * ones, width * ones

    # Output pixel i covers [i, i + 1) steps of the box, so its centre lies at top + (i + 0.5) * step - 0.5.
    step_y, step_x = box_height / height, box_width / width
    top, left = top + 0.5 * step_y - 0.5, left + 0.5 * step_x - 0.5
    if flip:
        flipped = tf.random.stateless_uniform([count], flip_seed) < 0.5
        left = tf.where(flipped, left + (width - 1) * step_x, left)
        step_x = tf.where(flipped, -step_x, step_x)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([step_x, zeros, left, zeros, step_y, top, zeros, zeros], axis=1),
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT" if augment == "pad_crop" else "NEAREST",
    )
