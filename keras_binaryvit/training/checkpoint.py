"""TrainingCheckpoint: training that survives `kill -9`, a full disk and a damaged file, and continues bit for bit."""

import hashlib
import itertools
import json
import os
import re
import uuid
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np
from keras import ops

from keras_binaryvit.typing import Logs

_DIGEST_SIZE = 64  # characters of a SHA-256 in hexadecimal
_DIFFERENCES_SHOWN = 5


class CheckpointError(RuntimeError):
    """A checkpoint is damaged or belongs to another model or run; the message says which and what to do."""


class TrainingCheckpoint(keras.callbacks.Callback):
    """Saves the whole state of training after every epoch, and continues from it.

    A file `epoch-0007.npz` is the state after 7 epochs: all variables of the model (latent weights, moving statistics,
    the states of seed generators), those of its optimizer (slots, iterations, learning rate, loss scale), and the logs
    of every epoch so far. It is written beside and renamed, and ends with a SHA-256 of its bytes: a process may be
    killed at any moment, and a file that was cut short or changed is noticed when it is read; the one before is used
    then, with a warning. A model with an attribute `student` is saved as this student: a frozen teacher isn't.

    Where saving fails, as on a full disk, or where a variable isn't finite, a warning says so, training goes on, and
    every older checkpoint stays.

    Example:

    ```python
    checkpoints = TrainingCheckpoint("run")
    epoch = checkpoints.completed_epochs  # 0 in a new folder
    training = kb.data.load("cifar10", augment=True, first_epoch=epoch)
    ...  # build and compile the model, as in the run that is continued
    checkpoints.restore(model)
    model.fit(training, epochs=10, initial_epoch=epoch, validation_data=testing, callbacks=[checkpoints])
    checkpoints.load_best(model)
    ```

    The continued run ends with the weights of an uninterrupted one, bit for bit, where the steps themselves are
    reproducible (they are on CPUs) and the batches depend on the seed and the epoch alone. Arrays that `fit` shuffles
    don't; `data.load` with `first_epoch` does. On several hosts each one writes: all may share a folder.

    Args:
        folder: Where the files are; made if it isn't there.
        keep: How many of the newest to keep. The best is kept as well.
        monitor: Name in the logs that tells the best epoch, or `None` to keep none as the best.
        mode: `"max"` or `"min"`: whether the best is the largest or the smallest; `"auto"` means the smallest where
            `monitor` holds `loss` or `error`.

    Raises:
        ValueError: `keep` isn't a positive integer, or `mode` is another string.
        OSError: When training begins: the folder can't be written to.
        CheckpointError: When training begins: the folder holds the checkpoints of another run, or `initial_epoch` isn't
            the epoch with which they continue.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        keep: int = 3,
        monitor: str | None = "val_accuracy",
        mode: str = "auto",
    ):
        super().__init__()
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep must be a positive integer. Received: keep={keep!r}")
        if mode not in ("auto", "max", "min"):
            raise ValueError(f"mode must be 'auto', 'max' or 'min'. Received: mode={mode!r}")
        if mode == "auto":
            mode = "min" if re.search("loss|error", monitor or "") else "max"
        self.folder = Path(folder).expanduser()
        self.keep = keep
        self.monitor = monitor
        self.mode = mode
        self._logs: dict[int, dict[str, float]] = {}  # by the number of completed epochs
        self._next_epoch: int | None = None  # None: this object has neither saved nor restored anything
        self._warned_of_monitor = False

    @property
    def completed_epochs(self) -> int:
        """The epochs that the newest whole checkpoint has behind it: `initial_epoch` of `fit`. 0 where there is none.

        Raises:
            CheckpointError: There are checkpoints, and all are damaged.
        """
        newest = self._newest_whole()
        return newest.epoch if newest else 0

    @property
    def history(self) -> dict[str, list[float]]:
        """The logs of all epochs, those before the interruption among them, as `keras.callbacks.History` has them.

        Raises:
            CheckpointError: There are checkpoints, and all are damaged.
        """
        logs = self._all_logs()
        names = dict.fromkeys(itertools.chain.from_iterable(logs.values()))
        return {name: [logs[epoch][name] for epoch in sorted(logs) if name in logs[epoch]] for name in names}

    @property
    def best(self) -> Path | None:
        """The checkpoint with the best value of `monitor`, the earliest of equals; `None` where none has a value.

        Raises:
            CheckpointError: There are checkpoints, and all are damaged.
        """
        sign = 1 if self.mode == "max" else -1
        logs = self._all_logs()
        values = {
            epoch: sign * logs[epoch][self.monitor]
            for epoch in self._files()
            if self.monitor in logs.get(epoch, {}) and np.isfinite(logs[epoch][self.monitor])
        }
        return self._path(max(values, key=lambda epoch: (values[epoch], -epoch))) if values else None

    def restore(self, model: keras.Model) -> int:
        """Puts the newest whole checkpoint into `model` and its optimizer.

        Args:
            model: Built and compiled as it was when it was saved; inside the scope of its `tf.distribute` strategy, if
                it has one.

        Returns:
            The number of completed epochs, which is `initial_epoch` of the `fit` that follows; 0 where the folder holds
            no checkpoint.

        Raises:
            ValueError: The model isn't built or compiled.
            CheckpointError: The checkpoint is of another architecture or optimizer, and nothing was loaded; or there
                are checkpoints and all are damaged.
        """
        if not model.built or getattr(model, "optimizer", None) is None:
            raise ValueError(
                f"The model {model.name!r} must be built and compiled before a checkpoint is restored: give it an "
                "Input or call it on a batch, then call compile."
            )
        newest = self._newest_whole()
        if newest is None:
            return 0
        _build_optimizer(model)
        _assign(newest, {"model": _trained(model).variables, "optimizer": model.optimizer.variables})
        self._logs, self._next_epoch = newest.logs, newest.epoch
        return newest.epoch

    def load_best(self, model: keras.Model) -> int:
        """Puts the weights of the best checkpoint into `model`, which needn't be compiled; not the optimizer's state.

        Returns:
            The epochs that it has behind it.

        Raises:
            ValueError: The model isn't built.
            CheckpointError: No checkpoint has a value of `monitor`, or the best one is damaged or of another
                architecture; nothing was loaded.
        """
        if not model.built:
            raise ValueError(f"The model {model.name!r} must be built: give it an Input or call it on a batch.")
        path = self.best
        if path is None:
            raise CheckpointError(f"No checkpoint in {str(self.folder)!r} has a value of {self.monitor!r}.")
        checkpoint = _Checkpoint.read(path)
        _assign(checkpoint, {"model": _trained(model).variables})
        return checkpoint.epoch

    def on_train_begin(self, logs: Logs = None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(".epoch-*.tmp"):  # of a process that was killed while it wrote
            stale.unlink(missing_ok=True)
        probe = self.folder / f".epoch-{uuid.uuid4().hex}.tmp"
        probe.touch()  # hours of training must not end in a folder that can't be written to
        probe.unlink()
        files = self._files()
        if files and self._next_epoch is None:
            raise CheckpointError(
                f"{str(self.folder)!r} holds the checkpoints of another run, the newest after epoch {files[-1]}. To "
                "continue it, call restore(model) before fit; for a new run name a new folder."
            )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        if self._next_epoch not in (None, epoch):
            raise CheckpointError(
                f"The checkpoints in {str(self.folder)!r} continue with epoch {self._next_epoch} (counted from 0), and "
                f"training begins with epoch {epoch}: pass initial_epoch={self._next_epoch} to fit, and first_epoch="
                f"{self._next_epoch} to data.load."
            )

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        completed = epoch + 1
        self._next_epoch = completed
        self._logs = {number: values for number, values in self._logs.items() if number < completed}
        self._logs[completed] = {name: float(value) for name, value in (logs or {}).items()}
        self._warn_without_monitor(logs or {})
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        checkpoint = _Checkpoint.of(self.model, completed, self._logs)
        broken = checkpoint.not_finite()
        if broken:
            self._warn(
                f"No checkpoint after epoch {completed}: {broken} isn't finite. The older ones are as they were."
            )
            return
        try:
            checkpoint.write(self._path(completed))
            self._remove_old()
        except OSError as error:
            self._warn(
                f"No checkpoint after epoch {completed}: {error.strerror or error} ({str(self.folder)!r}). Training "
                "goes on, and the older checkpoints are as they were."
            )

    def _warn_without_monitor(self, logs):
        if self.monitor is None or self.monitor in logs or self._warned_of_monitor:
            return
        self._warned_of_monitor = True
        self._warn(
            f"The logs have no {self.monitor!r}, so no checkpoint counts as the best. They have: {', '.join(logs)}. "
            "Give fit validation_data, or TrainingCheckpoint another monitor."
        )

    def _remove_old(self):
        keep = {self._path(epoch) for epoch in self._files()[-self.keep :]} | {self.best}
        for epoch in self._files():
            if self._path(epoch) not in keep:
                self._path(epoch).unlink(missing_ok=True)

    def _path(self, epoch):
        return self.folder / f"epoch-{epoch:04d}.npz"

    def _files(self):
        """The numbers of completed epochs of which there is a file, in order."""
        matches = (re.fullmatch(r"epoch-(\d{4,})\.npz", path.name) for path in self.folder.glob("epoch-*.npz"))
        return sorted(int(match[1]) for match in matches if match)

    def _all_logs(self):
        if not self._logs:
            newest = self._newest_whole()
            self._logs = newest.logs if newest else {}
        return self._logs

    def _newest_whole(self):
        epochs = self._files()
        for epoch in reversed(epochs):
            try:
                return _Checkpoint.read(self._path(epoch))
            except CheckpointError as error:
                self._warn(f"{error} The checkpoint before it is used.")
        if epochs:
            raise CheckpointError(
                f"All checkpoints in {str(self.folder)!r} are damaged ({len(epochs)}). Remove them to begin anew, or "
                "copy whole ones there."
            )
        return None

    @staticmethod
    def _warn(message: str) -> None:
        warnings.warn(message, stacklevel=3)


class _Checkpoint:
    """The content of one file: `arrays` and `paths`, both by group and in order, and the logs by completed epochs."""

    def __init__(self, epoch: int, logs: dict, paths: dict[str, list[str]], arrays: dict[str, list[np.ndarray]]):
        self.epoch = epoch
        self.logs = logs
        self.paths = paths
        self.arrays = arrays
        self.name = "this checkpoint"

    @classmethod
    def of(cls, model: keras.Model, epoch: int, logs: dict) -> "_Checkpoint":
        groups = {"model": _trained(model).variables, "optimizer": model.optimizer.variables}
        paths = {group: [variable.path for variable in variables] for group, variables in groups.items()}
        arrays = {
            group: [np.asarray(ops.convert_to_numpy(variable)) for variable in variables]
            for group, variables in groups.items()
        }
        return cls(epoch, dict(logs), paths, arrays)

    def not_finite(self) -> str | None:
        """Returns the path of the first variable with a value that isn't finite."""
        for group, arrays in self.arrays.items():
            for path, array in zip(self.paths[group], arrays, strict=True):
                # NumPy's own kinds, and the float formats of ml_dtypes, whose kind is V
                if array.dtype.kind in "fV" and not np.isfinite(array).all():
                    return path
        return None

    def write(self, path: Path) -> None:
        temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.tmp")
        # `Any`, because for NumPy's type hints each name could be `allow_pickle`.
        content: dict[str, Any] = {
            f"{group}/{i:04d}": array for group, arrays in self.arrays.items() for i, array in enumerate(arrays)
        }
        dtypes = {group: [array.dtype.name for array in arrays] for group, arrays in self.arrays.items()}
        metadata = {
            "epoch": self.epoch,
            "logs": list(self.logs.items()),
            "paths": self.paths,
            "dtypes": dtypes,
            "keras": keras.version(),
            "backend": keras.backend.backend(),
        }
        content["metadata"] = np.array(json.dumps(metadata).encode())
        try:
            with open(temporary, "w+b") as file:
                np.savez(file, **content)
                with zipfile.ZipFile(file, "a") as archive:
                    archive.comment = b"-" * _DIGEST_SIZE  # the end of the file, overwritten below
                end = file.seek(-_DIGEST_SIZE, os.SEEK_END)
                digest = _digest(file, end)
                file.seek(end)
                file.write(digest)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)

    @classmethod
    def read(cls, path: Path) -> "_Checkpoint":
        with open(path, "rb") as file:
            end = max(file.seek(0, os.SEEK_END) - _DIGEST_SIZE, 0)
            if _digest(file, end) != file.read():
                raise CheckpointError(f"The checkpoint {str(path)!r} was cut short or changed after it was written.")
            file.seek(0)
            with np.load(file, allow_pickle=False) as content:
                metadata = json.loads(content["metadata"].item())
                arrays = {
                    # NumPy stores types that it doesn't know, such as bfloat16, as bytes
                    group: [content[f"{group}/{i:04d}"].view(dtype) for i, dtype in enumerate(dtypes)]
                    for group, dtypes in metadata["dtypes"].items()
                }
        checkpoint = cls(metadata["epoch"], dict(metadata["logs"]), metadata["paths"], arrays)
        checkpoint.name = repr(str(path))
        return checkpoint


def _digest(file: BinaryIO, end: int) -> bytes:
    """Returns the SHA-256 of the first `end` bytes, in hexadecimal, and leaves the file at `end`."""
    digest = hashlib.sha256()
    file.seek(0)
    while end > 0:
        block = file.read(min(end, 2**20))
        digest.update(block)
        end -= len(block)
    return digest.hexdigest().encode()


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a loss of power; where folders can't be opened, as on Windows, it does so."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _trained(model: keras.Model) -> keras.Model:
    return getattr(model, "student", model)


def _build_optimizer(model: keras.Model) -> None:
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def _assign(checkpoint: _Checkpoint, groups: dict[str, list[Any]]) -> None:
    """Assigns all `groups` of variables, or none where one differs from what was saved."""
    what = {"model": ("architecture", "model"), "optimizer": ("optimizer", "optimizer")}
    for group, variables in groups.items():
        saved = [
            (path, array.shape, array.dtype.name)
            for path, array in zip(checkpoint.paths[group], checkpoint.arrays[group], strict=True)
        ]
        present = [(variable.path, tuple(variable.shape), variable.dtype) for variable in variables]
        pairs = itertools.zip_longest(saved, present)
        differing = [pair for pair in pairs if _comparable(group, pair[0]) != _comparable(group, pair[1])]
        if differing:
            other, owner = what[group]
            lines = [f"{_describe(first)} was saved, {_describe(second)} is there" for first, second in differing]
            shown = lines[:_DIFFERENCES_SHOWN]
            if len(lines) > len(shown):
                shown.append(f"and {len(lines) - len(shown)} more")
            raise CheckpointError(
                f"{checkpoint.name} is of another {other}; nothing was loaded. {len(saved)} variables were saved, the "
                f"{owner} has {len(present)}. In order, the first that differ:\n  " + "\n  ".join(shown) + "\n"
                f"Make the {owner} with the arguments of the run that wrote the checkpoint, or name a new folder."
            )
    for group, variables in groups.items():
        for variable, array in zip(variables, checkpoint.arrays[group], strict=True):
            variable.assign(array)


def _comparable(group, variable):
    if variable is None:
        return None
    path, shape, dtype = variable
    if group == "optimizer":  # whose scope depends on who builds it, fit or restore
        path = path.rpartition("/")[2]
    # Keras numbers the names that it makes up on from one model to the next in a process: dense_3 is dense elsewhere.
    # Backends differ in the integers which they keep seeds and counters in.
    return re.sub(r"_\d+(?=[_/]|$)", "", path), shape, "integer" if "int" in dtype else dtype


def _describe(variable):
    return "nothing" if variable is None else "{} {} {}".format(*variable)
