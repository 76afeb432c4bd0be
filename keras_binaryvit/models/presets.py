"""Presets: named architectures, and folders that hold a model with its weights."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_binaryvit.files import write_file

FOLDER = Path(__file__).parents[1] / "presets"
"""Where the package keeps the folders of the presets that are trained."""

CONFIG = "config.json"
METADATA = "metadata.json"
PACKED = "weights.npz"
LATENT = "model.weights.h5"
_DIGESTS = "sha256"


@dataclasses.dataclass(frozen=True)
class PresetMetadata:
    """What to know about a preset before loading it.

    Attributes:
        description: One sentence.
        parameters: Number of parameters, as `count_params()` gives it.
        dataset: What the weights were trained on.
        top1: Share of the data set's test images that are classified correctly, 0 to 1.
        recipe: How the weights were trained, such as a command.
        source: Paper or code that the architecture comes from.
        license: SPDX identifier of the weights' license.
    """

    description: str
    parameters: int
    dataset: str | None = None
    top1: float | None = None
    recipe: str | None = None
    source: str | None = None
    license: str = "Apache-2.0"


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named architecture.

    Attributes:
        config: Arguments of the model's constructor.
        metadata: What to know about it.
        sha256: Of the `metadata.json` in its folder, for presets whose weights come with the package. That file holds
            the digests of the others.
    """

    config: Mapping[str, Any]
    metadata: PresetMetadata
    sha256: str | None = None


# The class and the preset by name; `PresetModel` enters those of each subclass.
REGISTRY: dict[str, tuple[type, Preset]] = {}


def list_presets(trained: bool | None = None) -> list[str]:
    """Returns the names that `from_preset` accepts, sorted.

    Args:
        trained: `True` for those with weights, `False` for those without, `None` for all.
    """
    return sorted(
        name for name, (_, preset) in REGISTRY.items() if trained is None or trained == (preset.sha256 is not None)
    )


def write_folder(folder: str | os.PathLike, files: Mapping[str, bytes], metadata: PresetMetadata) -> str:
    """Writes a preset's files and `metadata.json`, which holds their digests and comes last.

    Returns:
        The SHA-256 of `metadata.json`.

    Raises:
        OSError: The folder can't be written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_file(folder / name, content)
    digests = {name: _digest(content) for name, content in files.items()}
    content = json.dumps({**dataclasses.asdict(metadata), _DIGESTS: digests}, indent=2).encode() + b"\n"
    write_file(folder / METADATA, content)
    for name in {CONFIG, PACKED, LATENT} - set(files):  # of a preset that was there before
        (folder / name).unlink(missing_ok=True)
    return _digest(content)


def read_folder(folder: str | os.PathLike, sha256: str | None = None) -> dict[str, bytes]:
    """Returns the files of a preset by name, except `metadata.json`, after checking their digests.

    Args:
        folder: As `write_folder` left it.
        sha256: What the digest of `metadata.json` must be, `None` for any.

    Raises:
        ValueError: The folder holds no preset, or a file is missing or damaged.
    """
    folder = Path(folder)
    remedy = "Save it again with save_to_preset." if sha256 is None else "Install keras-binaryvit again."
    content = _read(folder / METADATA, sha256, remedy)
    try:
        digests = json.loads(content)[_DIGESTS]
        expected = {CONFIG, PACKED if PACKED in digests else LATENT}
        if set(digests) != expected:
            raise ValueError(f"digests of {sorted(digests)}, expected {sorted(expected)}")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{str(folder / METADATA)!r} isn't the metadata of a preset: {error}. {remedy}") from error
    return {name: _read(folder / name, digest, remedy) for name, digest in digests.items()}


def _read(path, sha256, remedy):
    if not path.is_file():
        raise ValueError(f"The preset in {str(path.parent)!r} is incomplete: {path.name} is missing. {remedy}")
    content = path.read_bytes()
    if sha256 is not None and _digest(content) != sha256:
        raise ValueError(
            f"The preset in {str(path.parent)!r} is damaged: the SHA-256 of {path.name} is {_digest(content)}, "
            f"expected {sha256}. {remedy}"
        )
    return content


def _digest(content):
    return hashlib.sha256(content).hexdigest()
