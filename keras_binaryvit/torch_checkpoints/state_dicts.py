"""State dicts in files: `.pth`, `.npz` and `.safetensors` to NumPy arrays by name, and back."""

import argparse
import collections
import io
import os
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_binaryvit.files import write_file

StateDict = Mapping[str, np.ndarray]


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the arrays of a PyTorch state dict by name. Nothing in the file is executed.

    Args:
        path: A `.npz` or `.safetensors` file, or a `.pth` or `.pt` file with a state dict or a training checkpoint
            (`{"model": state dict, ...}`), which needs PyTorch. If any name begins with `state/`, only those that do
            are returned, without it; then as `model_entries`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Its ending is unknown, or it is cut short, of another format, or holds more than tensors.
        ImportError: PyTorch or safetensors isn't installed.
    """
    path = Path(path)
    read, _ = _format(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        state = read(path)
    except ImportError:
        raise
    except Exception as error:  # each format's reader raises whatever it trips over
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        if type(error) is not ValueError:
            reason = f"it is cut short or of another format ({type(error).__name__}: {reason})"
        raise ValueError(f"{str(path)!r} can't be read as a {path.suffix} file: {reason}") from error
    recorded = {name.removeprefix("state/"): array for name, array in state.items() if name.startswith("state/")}
    return model_entries(recorded or state)


def model_entries(state: StateDict) -> dict[str, np.ndarray]:
    """Returns the entries of a model of the authors', named `vit. ...` and `classifier. ...`, without what wrappers put
    before all of these names, such as `module.` or `model.`.

    Warns of other entries, such as those of an optimizer, which are left out. With several models the largest is
    returned, the first of equal ones. A state dict with no such name is returned as it is.
    """
    names = [re.match(r"((?:[^.]+\.)*?)(?:vit|classifier)\.", name) for name in state]
    prefixes = collections.Counter(name[1] for name in names if name)
    if not prefixes:
        return dict(state)
    (prefix, _), *_ = prefixes.most_common(1)
    entries = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
    entries = {name: array for name, array in entries.items() if name.split(".")[0] in ("vit", "classifier")}
    if skipped := [name for name in state if name.removeprefix(prefix) not in entries]:
        _warn_of_skipped(skipped)
    return entries


def _warn_of_skipped(names):
    groups = collections.Counter(name.split(".")[0] for name in names)
    listed = ", ".join(name if count == 1 else f"{name} ({count} entries)" for name, count in groups.items())
    warnings.warn(f"Skipped what is no part of the model in the checkpoint: {listed}", stacklevel=4)


def write_state_dict(path: str | os.PathLike, state: StateDict) -> None:
    """Writes arrays by name, beside `path` and renamed, so that a failure leaves whatever was there.

    Args:
        path: Ends in `.npz`, `.safetensors`, `.pth` or `.pt`; the last two need PyTorch and hold a plain state dict.
        state: Names with arrays.

    Raises:
        ValueError: The ending is unknown.
        ImportError: PyTorch or safetensors isn't installed.
        OSError: The folder is missing or can't be written to.
    """
    _, content = _format(Path(path))
    # In C order, as all formats store arrays; np.ascontiguousarray would give scalars an axis.
    write_file(path, content({name: np.asarray(array, order="C") for name, array in state.items()}))


def _format(path: Path) -> tuple[Callable, Callable]:
    """Returns the functions that read a file and give a file's content."""
    formats = {
        ".npz": (_read_npz, _npz),
        ".safetensors": (_read_safetensors, _safetensors),
        ".pth": (_read_pth, _pth),
        ".pt": (_read_pth, _pth),
    }
    if path.suffix not in formats:
        raise ValueError(f"{path.name!r} must end in one of {', '.join(formats)}.")
    return formats[path.suffix]


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _npz(state: dict[str, Any]) -> bytes:  # `Any`, because for NumPy's type hints each name could be `allow_pickle`
    content = io.BytesIO()
    np.savez(content, **state)
    return content.getvalue()


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    state = _import_safetensors().load_file(path)
    return {name: a.astype("float32") if a.dtype.name == "bfloat16" else a for name, a in state.items()}


def _safetensors(state: StateDict) -> bytes:
    return _import_safetensors().save(state)


def _read_pth(path: Path) -> dict[str, np.ndarray]:
    torch = _import_torch()
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        # CVE-2025-32434: until then a file could run code in spite of weights_only.
        raise ImportError(f"Reading a {path.suffix} file safely needs PyTorch 2.6 or newer. Found: {torch.__version__}")
    try:
        # A training checkpoint also holds the command line; a Namespace only takes attributes, it runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"it is no PyTorch file or holds more than tensors{f' ({name[1]})' if name else ''}; nothing of it was run"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a state dict")
    state = content["model"] if isinstance(content.get("model"), dict) else content
    entries = dict(_entries(state))
    tensors = {name: value for name, value in entries.items() if isinstance(value, torch.Tensor)}
    others = [*(content if state is not content else ()), *entries]
    if skipped := [str(name) for name in others if name not in tensors and name != "model"]:
        _warn_of_skipped(skipped)
    if not tensors:
        raise ValueError(f"it holds no state dict; these entries are no tensors: {', '.join(skipped)}")
    # NumPy has no bfloat16.
    return {n: (t.float() if t.dtype == torch.bfloat16 else t).detach().numpy() for n, t in tensors.items()}


def _entries(content, prefix=""):
    """Yields the entries of nested dictionaries, with names joined by dots."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _entries(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _pth(state: StateDict) -> bytes:
    torch = _import_torch()
    content = io.BytesIO()
    torch.save({name: torch.from_numpy(array.copy()) for name, array in state.items()}, content)
    return content.getvalue()


def _import_torch():
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "A .pth file needs PyTorch: pip install torch --index-url https://download.pytorch.org/whl/cpu "
            f"(.npz and .safetensors don't). The error was: {error}"
        ) from error
    return torch


def _import_safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "A .safetensors file needs `pip install 'keras-binaryvit[checkpoints]'` (.npz doesn't). "
            f"The error was: {error}"
        ) from error
    return safetensors.numpy
