"""PresetModel: a functional model whose config is its constructor's arguments, and that presets are made of."""

import inspect
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import keras

from keras_binaryvit.files import load_model
from keras_binaryvit.models import packed_weights
from keras_binaryvit.models.presets import (
    CONFIG,
    FOLDER,
    LATENT,
    PACKED,
    REGISTRY,
    Preset,
    PresetMetadata,
    list_presets,
    read_folder,
    write_folder,
)

Model = TypeVar("Model", bound="PresetModel")
# What Keras keeps itself.
_OF_KERAS = ("name", "trainable", "dtype")
_FROZEN = "frozen_layers"
# What arguments were called in version 0.1.
_RENAMED = {
    "affine": "use_affine",
    "branches": "use_pooling_branches",
    "class_token": "use_class_token",
    "expansion": "mlp_ratio",
    "expansions": "mlp_ratios",
    "patch_norm": "use_patch_norm",
    "reductions": "sr_ratios",
}


class PresetModel(keras.Model):
    """A functional model with named architectures.

    What a model is created with is its config, whichever subclass it is of. A subclass sets `presets`, by name; their
    arguments must be those of its constructor.

    Args:
        inputs: As in `keras.Model`.
        outputs: As in `keras.Model`.
        arguments: Of the constructor that builds the layers, `name`, `trainable` and `dtype` among them. They become
            attributes.
    """

    presets: ClassVar[Mapping[str, Preset]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, preset in vars(cls).get("presets", {}).items():
            _bound(cls, None, **preset.config)  # a typo fails here
            REGISTRY[name] = (cls, preset)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        model = super().__new__(cls, *args, **kwargs)
        try:
            values = _bound(cls, model, *args, **kwargs)
        except TypeError:  # `__init__` says what is wrong; and Keras itself makes models without arguments
            return model
        object.__setattr__(model, "_config", _with_tuples(values))  # Keras' own would track it, and isn't ready
        return model

    def __init__(self, inputs: Any, outputs: Any, arguments: Mapping[str, Any]):
        super().__init__(inputs=inputs, outputs=outputs, name=arguments["name"], trainable=arguments["trainable"])
        object.__setattr__(self, "_arguments", _with_tuples(arguments))
        for argument, value in self._arguments.items():
            if argument not in _OF_KERAS and not isinstance(getattr(type(self), argument, None), property):
                setattr(self, argument, value)
        if arguments["dtype"] is not None:
            self.dtype_policy = arguments["dtype"]  # by which `compile` knows that losses need scaling

    @classmethod
    def from_preset(
        cls: type[Model], preset: str | os.PathLike, load_weights: bool | None = None, **overrides: Any
    ) -> Model:
        """Creates a model from a preset: a named architecture, a folder of `save_to_preset`, or a `.keras` file.

        Args:
            preset: One of `keras_binaryvit.list_presets()`, or a path.
            load_weights: `None` loads the weights if the preset has some; with `True` it must have some; with `False`
                the weights are random.
            **overrides: Arguments that replace the preset's, such as `num_classes` and `image_shape`. With another
                `num_classes` the model gets a new head and no class names.

        Raises:
            ValueError: There is no such preset, it is of another class, or its files are damaged or don't fit the
                overrides.
        """
        kind, config, weights = _source(cls, preset)
        if load_weights and weights is None:
            raise ValueError(
                f"The preset {preset!r} has no weights. Presets with weights: {', '.join(list_presets(True))}"
            )
        new_classes = overrides.get("num_classes", config["num_classes"]) != config["num_classes"]
        if new_classes:
            overrides = {"class_names": None, **overrides}
        model = kind.from_config({**config, **overrides})
        if weights is not None and load_weights is not False:
            packed_weights.unpack(model, weights(), without=("head",) if new_classes or not model.include_top else ())
        return model

    def save_to_preset(
        self,
        folder: str | os.PathLike,
        *,
        latent_weights: bool = False,
        metadata: PresetMetadata | None = None,
    ) -> str:
        """Writes the model to a folder that `from_preset` reads: `config.json`, the weights, and `metadata.json`.

        Args:
            folder: Created if it doesn't exist. A preset in it is replaced.
            latent_weights: Whether to keep the kernels as they are trained, in `model.weights.h5`. Otherwise
                `weights.npz` has one bit per weight and one magnitude per unit of the binary kernels, which is all that
                inference needs.
            metadata: What to know about the model.

        Returns:
            The SHA-256 of `metadata.json`, which holds those of the other files.

        Raises:
            OSError: The folder can't be written to.
            ValueError: A kernel can't be kept as bits.
        """
        serialized = keras.saving.serialize_keras_object(self)
        config = {key: serialized[key] for key in ("module", "class_name", "config", "registered_name")}
        files = {CONFIG: json.dumps(config, indent=2).encode() + b"\n"}
        if latent_weights:
            with tempfile.TemporaryDirectory() as temporary:
                file = Path(temporary, LATENT)
                self.save_weights(file)
                files[LATENT] = file.read_bytes()
        else:
            files[PACKED] = packed_weights.to_bytes(packed_weights.pack(self))
        if metadata is None:
            metadata = PresetMetadata(f"The model {self.name}", self.count_params())
        return write_folder(folder, files, metadata)

    def make_train_function(self, force: bool = False) -> Any:
        """As Keras' own, with an optimizer that is built: TensorFlow traces a step that makes variables twice."""
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def get_config(self) -> dict:
        """Returns the constructor's arguments, and the paths of layers that aren't trained."""
        config = {name: _serialized(value) for name, value in self._config.items()}
        layers = self._flatten_layers(include_self=False)
        frozen = tuple(layer.path for layer in layers if layer.path and not layer._trainable)
        return {**config, "name": self.name, "trainable": self.trainable, **({_FROZEN: frozen} if frozen else {})}

    @classmethod
    def from_config(cls: type[Model], config: dict, custom_objects: dict | None = None) -> Model:
        """Creates the model from `get_config()`."""
        names = inspect.signature(cls.__init__).parameters  # a subclass may call its own arguments so
        values = {
            name if name in names else _RENAMED.get(name, name): _deserialized(value, custom_objects)
            for name, value in config.items()
        }
        frozen = set(values.pop(_FROZEN, ()))
        model = cls(**values)
        for layer in model._flatten_layers(include_self=False):
            if layer.path in frozen:
                layer.trainable = False
        return model


def _bound(kind, *args, **kwargs):
    """Returns the arguments that `kind.__init__` gets, by name and with its defaults."""
    bound = inspect.signature(kind.__init__).bind(*args, **kwargs)
    bound.apply_defaults()
    _, *arguments = bound.arguments.items()
    values: dict[str, Any] = {}
    for name, value in arguments:
        variadic = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        values |= value if variadic else {name: value}
    return values


def _source(cls, preset):
    """Returns the class of a preset's model, its config, and what returns its weights by path, `None` without any."""
    registered, folder, sha256 = REGISTRY.get(os.fspath(preset)), Path(preset), None
    if registered is not None:
        kind = _checked_class(cls, registered[0], preset)
        if registered[1].sha256 is None:
            return kind, {**_bound(kind, None, **registered[1].config), "name": preset}, None
        folder, sha256 = FOLDER / preset, registered[1].sha256
    if folder.suffix == ".keras" and folder.is_file():
        model = load_model(folder)
        kind = _checked_class(cls, type(model), preset)
        return kind, model.get_config(), lambda: packed_weights.values(model)
    if registered is None and not folder.is_dir():
        raise ValueError(
            f"Unknown preset {os.fspath(preset)!r}: no folder or .keras file has this path. "
            f"Known presets: {', '.join(list_presets())}"
        )
    files = read_folder(folder, sha256)
    saved = json.loads(files[CONFIG])
    kind = keras.saving.get_registered_object(saved["registered_name"])
    kind = _checked_class(cls, kind, preset, saved["class_name"])

    def weights():
        if PACKED in files:
            return packed_weights.from_bytes(files[PACKED])
        model = kind.from_config(saved["config"])
        model.load_weights(folder / LATENT)
        return packed_weights.values(model)

    return kind, {name: _deserialized(value, None) for name, value in saved["config"].items()}, weights


def _checked_class(cls, kind, preset, class_name=None):
    """Returns the class to create: `kind`, or `cls` where that is a subclass."""
    if kind is None:
        raise ValueError(
            f"The preset {os.fspath(preset)!r} is a {class_name}, which isn't registered. Import the module that "
            "defines it with keras.saving.register_keras_serializable."
        )
    if issubclass(cls, kind):
        return cls
    if not issubclass(kind, cls):
        raise ValueError(
            f"The preset {os.fspath(preset)!r} is a {kind.__name__}, not a {cls.__name__}: use "
            f"{kind.__name__}.from_preset."
        )
    return kind


def _with_tuples(arguments):
    # What a config read from JSON holds is equal to what the user gave.
    return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}


def _serialized(value):
    plain = isinstance(value, bool | int | float | str | tuple | dict) or value is None
    return value if plain else keras.saving.serialize_keras_object(value)


def _deserialized(value, custom_objects):
    if isinstance(value, dict) and "class_name" in value:
        return keras.saving.deserialize_keras_object(value, custom_objects)
    return value
