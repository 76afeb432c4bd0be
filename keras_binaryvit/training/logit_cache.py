"""cache_logits and with_cached_logits: one pass of a teacher for many students."""

import hashlib
import io
import os
import typing
from pathlib import Path

import keras
import numpy as np

from keras_binaryvit.files import check_output, write_file
from keras_binaryvit.layers.validation import positive_integer
from keras_binaryvit.training.teachers import gives_probabilities

if typing.TYPE_CHECKING:
    import tensorflow as tf

# What float16 and another compilation of the teacher may change.
_TOLERANCE = 0.02


def cache_logits(
    teacher: keras.Model, dataset: "tf.data.Dataset", path: str | os.PathLike, epochs: int = 1, verbose: bool = True
) -> None:
    """Writes the teacher's logits for all images of `epochs` passes over a data set to a file.

    Students then train without the teacher:

    ```python
    def train():
        return kb.data.load("cifar10", augment=True)


    cache_logits(teacher, train(), "logits.npy", epochs=10)
    Distiller(student).fit(with_cached_logits(train(), "logits.npy"), epochs=10)
    ```

    Each image's logits are found by the image's bytes, so that their order doesn't matter, and images that come again
    are kept once. A file that is there already gets what it lacks. It is written after each pass, beside and renamed:
    what was written before survives an interruption, and the same call goes on from there.

    Args:
        teacher: Gives logits; runs in inference mode.
        dataset: Batches of images and whatever else, images first; loaded anew, as `data.load` returns it.
        path: The file, `.npy`: a record array of `key`, 64 bits of the image's BLAKE2b, and `logits`, float16. That
            rounds logits to 11 bits. An image takes 8 bytes and 2 for each class, also in memory.
        epochs: Passes to cache. Augmented images differ in each one: as many as the students train for, and one more
            under a strategy of `tf.distribute`, which begins with the second.
        verbose: Whether to show progress.

    Raises:
        ValueError: There are no images, the teacher gives probabilities or logits that float16 can't hold, or the file
            is damaged or of another teacher.
        OSError: The file can't be written.
    """
    positive_integer("epochs", epochs)
    path = check_output(path)
    if gives_probabilities(teacher):
        raise ValueError(f"The teacher {teacher.name!r} ends in a softmax. Wrap it: AdaptedTeacher(teacher, ...).")
    rows = _read(path) if path.exists() else None
    checked = rows is None
    for epoch in range(epochs):
        progress = keras.utils.Progbar(None, verbose=int(verbose), unit_name=f"batch of pass {epoch + 1}/{epochs}")
        known = _Index(rows) if rows is not None else None
        new = []
        step = -1
        for step, batch in enumerate(dataset.as_numpy_iterator()):
            images = batch[0] if isinstance(batch, tuple) else batch
            keys = _keys(images)
            found = known.find(keys) >= 0 if known else np.zeros(len(keys), bool)
            # One batch of what was there is computed again, to see whether this teacher wrote it.
            if not found.all() or not checked:
                logits = _logits(teacher, images)
                if known and found.any() and not checked:
                    _check_same_teacher(known.logits(keys[found]), logits[found], teacher, path)
                    checked = True
                new.append(_rows(keys[~found], logits[~found]))
            progress.update(step + 1)
        if step < 0:
            raise ValueError("The data set has no batches, so that there is nothing to cache.")
        progress.update(step + 1, finalize=True)
        if any(len(part) for part in new):
            rows = np.concatenate(([] if rows is None else [rows]) + new)
            rows = rows[np.unique(rows["key"], return_index=True)[1]]
            file = io.BytesIO()
            np.save(file, rows)
            write_file(path, file.getvalue())


def with_cached_logits(dataset: "tf.data.Dataset", path: str | os.PathLike) -> "tf.data.Dataset":
    """Returns the batches of `dataset` with the teacher's logits, for a `Distiller` without a teacher.

    Args:
        dataset: Batches of (images, labels): loaded anew, with the arguments of the one that `cache_logits` saw.
            `first_epoch` may differ. The `steps_per_execution` of training must divide the number of batches.
        path: The file that `cache_logits` wrote.

    Returns:
        A `tf.data.Dataset` of (images, {"labels": labels, "teacher_logits": logits}), the logits float32
        `(batch, classes)`. An image that the file doesn't have ends the iteration with an error that says so.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or the batches aren't (images, labels).
    """
    import tensorflow as tf

    specification = dataset.element_spec
    if not isinstance(specification, tuple) or len(specification) != 2:
        raise ValueError(f"The data set must have batches of (images, labels). It has {specification}")
    path = Path(path)
    index = _Index(_read(path))

    def look_up(images):
        keys = _keys(images)
        missing = int((index.find(keys) < 0).sum())
        if missing:
            raise ValueError(
                f"{missing} of the {len(keys)} images in a batch have no cached logits in {str(path)!r}. The data set "
                "has other arguments than the one it was made with (name, split, augment, seed, image_size, "
                "batch_size), was iterated before and goes on with a later pass, or is trained on for more epochs than "
                "were cached. Load it anew with those arguments, or cache more with cache_logits(..., epochs=...)."
            )
        return index.logits(keys).astype(np.float32)

    def add_logits(images, labels):
        logits = tf.numpy_function(look_up, [images], tf.float32, stateful=False)
        logits = tf.ensure_shape(logits, (images.shape[0], index.classes))
        return images, {"labels": labels, "teacher_logits": logits}

    return dataset.map(add_logits, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


class _Index:
    """Finds the rows of keys. `rows` may be a memory map: only the keys are held."""

    def __init__(self, rows: np.ndarray):
        self._rows = rows
        keys = np.array(rows["key"])
        self._order = np.argsort(keys)
        self._keys = keys[self._order]
        self.classes = rows.dtype["logits"].shape[0]

    def find(self, keys):
        """Returns the row of each key, -1 where there is none."""
        position = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[position] == keys, self._order[position], -1)

    def logits(self, keys):
        return self._rows["logits"][self.find(keys)]


def _keys(images):
    digests = (hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(digests), "<u8")


def _rows(keys, logits):
    rows = np.empty(len(keys), [("key", "<u8"), ("logits", "<f2", (logits.shape[1],))])
    rows["key"], rows["logits"] = keys, logits
    return rows


def _logits(teacher, images):
    logits = np.asarray(teacher.predict_on_batch(images), np.float32)
    if logits.ndim != 2:
        raise ValueError(f"The teacher {teacher.name!r} must give (batch, classes). Received: {logits.shape}")
    if not (np.abs(logits) < np.finfo(np.float16).max).all():
        raise ValueError(
            f"The teacher {teacher.name!r} gives logits that are not finite, or too large for float16 (65504). Look "
            "for such values in its weights and in the images."
        )
    return logits


def _check_same_teacher(stored, computed, teacher, path):
    stored = stored.astype(np.float32)
    if stored.shape != computed.shape or (np.abs(stored - computed) > _TOLERANCE * (1 + np.abs(computed))).any():
        raise ValueError(
            f"{str(path)!r} holds the logits of another teacher than {teacher.name!r}: they differ for the same "
            "images. Name another file, or remove this one."
        )


def _read(path):
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}; cache_logits writes it.")
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{str(path)!r} is no whole .npy file: remove it and call cache_logits. ({error})") from error
    if rows.dtype.names != ("key", "logits") or not len(rows):
        raise ValueError(f"{str(path)!r} wasn't written by cache_logits: it holds {rows.dtype}.")
    return rows
