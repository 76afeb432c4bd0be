"""load_model, save_model and write_file: input that is whole, and output that is whole or not there."""

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import keras


def check_output(path: str | os.PathLike) -> Path:
    """Returns `path` if a file can be written there, to find out before long work rather than after.

    Raises:
        OSError: The folder is missing or can't be written to, or `path` is a folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {str(path.parent)!r} for {path.name!r} doesn't exist; create it first.")
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; name a file in it.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise PermissionError(f"Can't write to the folder {str(path.parent)!r}: {error.strerror}.") from error
    return path


@contextlib.contextmanager
def _replacing(path: str | os.PathLike) -> Iterator[str]:
    """Yields the path of a new file beside `path`, which takes its place when all went well and is removed if not."""
    path = check_output(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{error.strerror}; nothing was changed", str(path)) from error
        raise


def write_file(path: str | os.PathLike, content: bytes) -> None:
    """Writes `content` beside `path` and renames it, so that a failure leaves whatever was there.

    Raises:
        OSError: As `check_output`, or the disk is full.
    """
    with _replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def save_model(path: str | os.PathLike, model: keras.Model) -> None:
    """Saves `model` beside `path` and renames it, so that a failure leaves whatever was there.

    Raises:
        OSError: As `check_output`, or the disk is full.
        ValueError: `path` doesn't end in `.keras`.
    """
    if Path(path).suffix != ".keras":
        raise ValueError(f"A model is saved as a .keras file. Received: {str(path)!r}")
    with _replacing(path) as temporary:
        model.save(temporary)


def load_model(path: str | os.PathLike) -> keras.Model:
    """Returns the model in the `.keras` file `path`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It isn't a whole `.keras` file, or one of Keras 2.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{str(path)!r} is no whole .keras file ({path.stat().st_size} bytes, no zip archive); "
            "it was cut short or is of another format. Save it again with model.save('x.keras')."
        )
    with zipfile.ZipFile(path) as archive:
        metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in archive.namelist() else {}
    version = str(metadata.get("keras_version", "3"))
    if version.startswith("2."):
        raise ValueError(
            f"{str(path)!r} was saved by Keras {version}, whose layers Keras 3 doesn't have. Build the model again "
            "from layers of Keras 3 and keras_binaryvit, and copy the weights with get_weights() and set_weights()."
        )
    return keras.saving.load_model(path, compile=False)
