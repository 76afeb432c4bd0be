"""ImageFolder: images in a folder of the user's own, one subfolder per class."""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_binaryvit.data.sources import DatasetInfo, Range, cut, described_splits, require
from keras_binaryvit.images import read_image

if TYPE_CHECKING:
    import tensorflow as tf

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_IGNORED = ("desktop.ini", "Thumbs.db")  # what file managers leave


class ImageFolder:
    """Images in one subfolder per class, which gives the class its name; classes are sorted by name.

    The classes may be inside of `train`, `validation` (or `val`) and `test`. In a folder without these, a tenth of each
    class is the split `validation`, chosen by the files' names, and the others are `train`. Files of a split are in an
    order in which every slice has its share of each class. Hidden files are ignored.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no classes, an empty one, other files than images, or other classes in another split.
    """

    in_memory = True  # the paths

    def __init__(self, name: str) -> None:
        self.root = os.path.expanduser(name)
        if not os.path.isdir(self.root):
            raise FileNotFoundError(f"There is no folder {name!r}.")
        classes = _classes_by_split(self.root)
        self._examples = {split: _mixed(files) for split, files in classes.items()}
        names = tuple(next(iter(classes.values())))
        sizes = {split: len(examples) for split, examples in self._examples.items()}
        self.info = DatasetInfo(name, len(names), names, (None, None, 3), sizes)
        self.splits = described_splits(sizes)

    def file(self, split: str, position: int) -> str:
        """Returns the path of an example's file."""
        return self._examples[split][position][0]

    def read(self, ranges: Sequence[Range], **_: Any) -> "tf.data.Dataset":
        tf = require("tensorflow", "tensorflow")
        examples = [example for split, start, stop in ranges for example in self._examples[split][start:stop]]
        require("PIL", "images")  # here: where images are decoded, TensorFlow would compile the call
        paths, labels = zip(*examples, strict=True)
        return tf.data.Dataset.from_tensor_slices(([os.fsencode(path) for path in paths], np.asarray(labels)))

    def decode(self, path: "tf.Tensor") -> "tf.Tensor":
        import tensorflow as tf

        image = tf.numpy_function(self._pixels, [path], tf.uint8, stateful=False)
        return tf.ensure_shape(image, (None, None, 3))

    def decode_window(self, path: "tf.Tensor", window: Callable) -> "tf.Tensor":
        return cut(self.decode(path), window)

    def _pixels(self, path):
        # Pillow, as in `classify` and on the phone: it reads the same formats, modes and orientations.
        try:
            return read_image(os.fsdecode(path), 3)
        except ValueError as error:
            finder = f"keras_binaryvit.data.find_corrupt({self.info.name!r})"
            raise ValueError(f"{error} Replace or remove it; {finder} finds all such files.") from error


def _classes_by_split(root):
    """Returns {split: {class: paths}}."""
    folders, _ = _listed(root)
    if folders and set(folders) <= set(_SPLITS):
        if {"val", "validation"} <= set(folders):
            raise ValueError(f"{root!r} has both 'val' and 'validation'. Keep one of them.")
        classes = {_SPLITS[folder]: _classes(os.path.join(root, folder)) for folder in folders}
        classes = {split: classes[split] for split in ("train", "validation", "test") if split in classes}
        (first, names), *others = ((split, list(files)) for split, files in classes.items())
        for split, other in others:
            if other != names:
                raise ValueError(
                    f"The splits of {root!r} must have the same classes. Only in {first}: "
                    f"{sorted(set(names) - set(other))}; only in {split}: {sorted(set(other) - set(names))}"
                )
        return classes
    if "train" in folders and _listed(os.path.join(root, "train"))[0]:
        others = [folder for folder in folders if folder not in _SPLITS]
        raise ValueError(f"{root!r} has the split 'train', and beside it {others}. Move these elsewhere.")
    train, validation = {}, {}
    for name, files in _classes(root).items():
        held = max(1, round(len(files) / 10)) if len(files) > 1 else 0
        train[name], validation[name] = files[: len(files) - held], files[len(files) - held :]
    return {"train": train, "validation": validation}


def _classes(folder):
    """Returns {class: paths}, the paths in an order that follows from their names and means nothing."""
    names, loose = _listed(folder)
    if len(names) < 2 or loose:
        raise ValueError(
            f"{folder!r} must have one subfolder per class, two or more, and no files beside them. "
            f"Received: the folders {names[:5]}, the files {loose[:5]}"
        )
    classes = {}
    for name in names:
        inner, files = _listed(os.path.join(folder, name))
        strange = inner + [file for file in files if not file.lower().endswith(_SUFFIXES)]
        if strange:
            raise ValueError(
                f"{os.path.join(folder, name, strange[0])!r} is in the folder of a class and isn't an image "
                f"({', '.join(_SUFFIXES)}). Convert it or move it elsewhere."
            )
        if not files:
            raise ValueError(f"The class {os.path.join(folder, name)!r} has no images. Add some, or remove the folder.")
        files.sort(key=lambda file: hashlib.sha256(os.fsencode(_composed(file))).digest())
        classes[_composed(name)] = [os.path.join(folder, name, file) for file in files]
    return dict(sorted(classes.items()))


def _listed(folder):
    """Returns the names of the visible folders and files in a folder."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _IGNORED]
    folders = sorted(entry.name for entry in visible if entry.is_dir())
    return folders, sorted(entry.name for entry in visible if not entry.is_dir())


def _composed(name):
    return unicodedata.normalize("NFC", name)  # macOS stores é as two characters


def _mixed(classes):
    """Returns (path, label) of all files, each class spread evenly."""
    places = [
        ((rank + 0.5) / len(files), label, path)
        for label, files in enumerate(classes.values())
        for rank, path in enumerate(files)
    ]
    return [(path, label) for _, label, path in sorted(places)]
