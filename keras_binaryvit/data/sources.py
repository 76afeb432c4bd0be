"""Where labeled images come from: scikit-learn's digits, and what TensorFlow Datasets (TFDS) has prepared.

A source has `info`, a `DatasetInfo`; `splits`, TFDS's description of each split; `read`, which gives examples as they
are stored; and `decode` and `decode_window`, which make pixels of them.
"""

import dataclasses
import difflib
import importlib
import os
import re
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

# A split's name, and its first example and the one after its last.
Range = tuple[str, int, int]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a data set holds.

    Attributes:
        name: As it was asked for; a `Path` ends in a separator.
        num_classes: Number of labels, which run from 0 to `num_classes - 1`.
        class_names: Their names.
        image_shape: `(height, width, channels)` as stored; height and width are `None` where images differ in size.
        num_examples: Number of examples in each split.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    num_examples: dict[str, int]


class Digits:
    """scikit-learn's digits, in memory; every fifth example of a class is for the test."""

    in_memory = True

    def __init__(self) -> None:
        digits = require("sklearn.datasets", "examples").load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
        test = np.zeros(len(images), bool)
        for label in range(10):
            test[np.flatnonzero(digits.target == label)[4::5]] = True
        self._arrays = {"train": (images[~test], digits.target[~test]), "test": (images[test], digits.target[test])}
        sizes = {split: len(labels) for split, (_, labels) in self._arrays.items()}
        self.info = DatasetInfo("digits", 10, tuple("0123456789"), (8, 8, 1), sizes)
        self.splits = described_splits(sizes)

    def read(self, ranges: Sequence[Range], **_: Any) -> "tf.data.Dataset":
        tf = require("tensorflow", "tensorflow")
        parts = [[array[start:stop] for array in self._arrays[split]] for split, start, stop in ranges]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return tf.data.Dataset.from_tensor_slices((images, labels))

    def decode(self, image: "tf.Tensor") -> "tf.Tensor":
        return image


class Prepared:
    """A data set that TFDS has prepared. Only files are looked at, so that nothing can be downloaded."""

    in_memory = False

    def __init__(self, name: str, data_dir: str | os.PathLike | None) -> None:
        self._builder = _builder(name, data_dir)
        stored = self._builder.info
        label = stored.features["label"]
        self.splits = stored.splits
        sizes = {split: stored.splits[split].num_examples for split in stored.splits}
        shape = tuple(stored.features["image"].shape)
        self.info = DatasetInfo(name, label.num_classes, tuple(label.names), shape, sizes)

    def read(
        self, ranges: Sequence[Range], shuffle_files: bool = False, seed: int = 0, in_order: bool = False
    ) -> "tf.data.Dataset":
        tfds = require("tensorflow_datasets", "data")
        dataset = self._builder.as_dataset(
            split="+".join(f"{split}[{start}:{stop}]" for split, start, stop in ranges),
            shuffle_files=shuffle_files,
            decoders=tfds.decode.PartialDecoding({"image": True, "label": True}, {"image": tfds.decode.SkipDecoding()}),
            # Several files are read by turns unless the order counts.
            read_config=tfds.ReadConfig(
                shuffle_seed=seed, try_autocache=False, **({"interleave_cycle_length": 1} if in_order else {})
            ),
        )
        return dataset.map(lambda example: (example["image"], example["label"]))

    def decode(self, image: "tf.Tensor") -> "tf.Tensor":
        import tensorflow as tf

        image = tf.io.decode_image(image, channels=self.info.image_shape[-1], expand_animations=False)
        return tf.ensure_shape(image, self.info.image_shape)

    def decode_window(self, image: "tf.Tensor", window: Callable) -> "tf.Tensor":
        """Decodes top, left, height and width that `window` gives for the image's shape; of a JPEG only this."""
        import tensorflow as tf

        def part_of_jpeg():
            shape = tf.io.extract_jpeg_shape(image)
            return tf.io.decode_and_crop_jpeg(image, window(shape), channels=self.info.image_shape[-1])

        return tf.cond(tf.io.is_jpeg(image), part_of_jpeg, lambda: cut(self.decode(image), window))


def _builder(name, data_dir):
    if data_dir is not None:
        data_dir = os.path.expanduser(data_dir)  # in Python no shell does it
    remote = data_dir is not None and "://" in os.fspath(data_dir)
    is_folder = require("tensorflow", "tensorflow").io.gfile.isdir if remote else os.path.isdir
    if data_dir is not None and not is_folder(data_dir):
        unless = " or TensorFlow doesn't read such addresses" if remote else ""
        raise FileNotFoundError(f"data_dir {os.fspath(data_dir)!r} doesn't exist{unless}.")
    tfds = require("tensorflow_datasets", "data")
    try:
        # Not tfds.builder: it asks for the version which the installed TFDS would write, not for the one that is there.
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        if base_name(name) not in known:
            close = difflib.get_close_matches(base_name(name), known)
            close = [f"{name}/"] if os.path.isdir(name) else close
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
            f"{name!r} needs an 'image' (uint8, grayscale or RGB) and a 'label' to classify it by; it has {features}."
        )
    return builder


def cut(image: "tf.Tensor", window: Callable) -> "tf.Tensor":
    """Returns top, left, height and width that `window` gives for the image's shape."""
    import tensorflow as tf

    top, left, height, width = tf.unstack(window(tf.shape(image)))
    return image[top : top + height, left : left + width]


def described_splits(sizes: dict[str, int]) -> dict[str, Any]:
    """Returns TFDS's description of splits with these numbers of examples."""
    tfds = require("tensorflow_datasets", "data")
    return {name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0) for name, size in sizes.items()}


def is_folder(name: str) -> bool:
    """Whether a name means a folder of images, such as `photos/`, rather than a data set."""
    return name.endswith(("/", os.sep)) or name.startswith((".", "~")) or os.path.isabs(name)


def base_name(name: str) -> str:
    """Returns a TFDS name without its config and its version; nothing for a folder."""
    return "" if is_folder(name) else re.split("[/:]", name)[0]


def require(module: str, extra: str) -> ModuleType:
    """Returns an imported module.

    Raises:
        ImportError: It isn't installed; the message names the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f"This needs {package}: pip install 'keras-binaryvit[{extra}]'") from error
