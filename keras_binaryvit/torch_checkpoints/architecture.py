"""From the authors' configuration and tensors to a model: which class, which arguments."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_binaryvit.layers.validation import positive_integer
from keras_binaryvit.models import BinaryViT, DeiT
from keras_binaryvit.models.image_classifier import ImageClassifier
from keras_binaryvit.models.preset_model import PresetModel
from keras_binaryvit.models.presets import list_presets
from keras_binaryvit.torch_checkpoints.state_dicts import model_entries, read_state_dict
from keras_binaryvit.torch_checkpoints.weight_names import load_torch_state_dict

StateDict = Mapping[str, np.ndarray]
Config = Mapping[str, Any]


def from_torch(
    path: str | os.PathLike, preset: str | None = None, config: str | os.PathLike | None = None
) -> PresetModel:
    """Returns the trained model in a PyTorch checkpoint of the authors' code.

    Args:
        path: What `read_state_dict` takes.
        preset: Names the architecture, as in `create_model`.
        config: The authors' `config.json`, instead of `preset`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file can't be read, no architecture is given, or the tensors don't fit it.
        ImportError: PyTorch or safetensors isn't installed.
    """
    settings = None if config is None else read_config(config)
    state = read_state_dict(path)
    model = create_model(state, preset, settings)
    load_torch_state_dict(model, state)
    return model


def create_model(state: StateDict, preset: str | None = None, config: Config | None = None) -> PresetModel:
    """Returns an untrained model for the tensors `state`: a `BinaryViT` or `DeiT`.

    Args:
        state: The authors' names with arrays. The number of classes is read from them; with `config` also the patch
            size and whether there are branches, affine, a class token and real-valued patch mergings.
        preset: One of any of these classes' `presets`.
        config: The authors' configuration, instead of `preset`.

    Raises:
        ValueError: Not one of `preset` and `config` is given, or it is unknown or incomplete.
    """
    if (preset is None) == (config is None):
        raise ValueError(
            f"Give a preset or a configuration, one of the two. Known presets: {', '.join(list_presets())}"
        )
    state = model_entries(state)
    classes = _num_classes(state)
    if preset is not None:
        return ImageClassifier.from_preset(preset, load_weights=False, **classes)
    model, arguments = _arguments(state, config)
    return model(**arguments, **classes)


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the authors' configuration: the object in a JSON file, or what that has under `config`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It isn't a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON file: {error}") from error
    if isinstance(config, dict):
        config = config.get("config", config)
    if not isinstance(config, dict):
        raise ValueError(f"{str(path)!r} holds no JSON object with a configuration.")
    return config


def _num_classes(state):
    for name in ("classifier.bias", "classifier.weight"):
        if name in state and state[name].ndim:
            return {"num_classes": state[name].shape[0]}
    return {}


def _arguments(state, config):
    """Returns the class of the model and its arguments but for the number of classes."""
    projection = state.get("vit.embeddings.patch_embeddings.projection.weight")
    if projection is not None and projection.ndim == 4:
        _, channels, _, patch_size = projection.shape  # the authors' pyramid ignores the configuration's
    else:
        channels, patch_size = config.get("num_channels", 3), _setting(config, "patch_size")
    sides = config.get("image_size", 224)
    shared = {
        "image_shape": (*(sides if isinstance(sides, Sequence) else (sides, sides)), channels),
        "patch_size": patch_size,
        "num_heads": _setting(config, "num_attention_heads"),
    }
    if isinstance(_setting(config, "hidden_size"), Sequence):
        return BinaryViT, shared | _pyramid_arguments(state, config)

    hidden, depth = config["hidden_size"], _setting(config, "num_hidden_layers")
    expansion = _expansion(_setting(config, "intermediate_size"), hidden)
    if not _any_name(state, ".rprelu"):
        return DeiT, {**shared, "embed_dim": hidden, "depth": depth, "mlp_ratio": expansion}
    return BinaryViT, {
        **shared,
        "embed_dims": (hidden,),
        "depths": (depth,),
        "num_heads": (shared["num_heads"],),
        "sr_ratios": (1,),
        "mlp_ratios": (expansion,),
        "use_patch_norm": False,
        "use_class_token": _any_name(state, ".cls_token"),
        "use_pooling_branches": _any_name(state, ".layerscale_"),
        "use_affine": _any_name(state, ".layerscale."),
    }


def _pyramid_arguments(state, config):
    hidden = config["hidden_size"]
    for name in ("intermediate_size", "num_attention_heads", "depths", "reduction_ratio"):
        values = _setting(config, name)
        if not isinstance(values, Sequence) or len(values) != len(hidden):
            raise ValueError(f"{name} must have one entry a stage, as hidden_size={hidden}. Received: {name}={values}")
    arguments = {
        "embed_dims": hidden,
        "depths": config["depths"],
        "sr_ratios": config["reduction_ratio"],
        "mlp_ratios": [_expansion(*sizes) for sizes in zip(config["intermediate_size"], hidden, strict=True)],
    }
    if _any_name(state, "encoder.patch_embed"):
        arguments["binary_patch_merging"] = _any_name(state, "encoder.patch_embed", ".rprelu.")
    return arguments


def _setting(config, name):
    if name not in config:
        raise ValueError(f"The configuration has no {name!r}. It has: {', '.join(sorted(config)) or 'nothing'}")
    return config[name]


def _any_name(state, *parts):
    return any(all(part in name for part in parts) for name in state)


def _expansion(intermediate, hidden):
    if positive_integer("intermediate_size", intermediate) % positive_integer("hidden_size", hidden):
        raise ValueError(f"intermediate_size must be a multiple of hidden_size. Received: {intermediate} and {hidden}")
    return intermediate // hidden
