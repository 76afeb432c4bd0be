"""PresetModel: a functional model whose config is its constructor's arguments, with named architectures."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import keras

from keras_binaryvit.models import pretrained

Model = TypeVar("Model", bound="PresetModel")
# What Keras keeps itself.
_OF_KERAS = ("name", "trainable", "dtype")
_FROZEN = "frozen_layers"


class PresetModel(keras.Model):
    """A functional model with named architectures.

    What a model is created with is its config, whichever subclass it is of. A subclass sets `presets` to arguments by
    name, and `trained` to the SHA-256 of the weights that come with the package, for those presets that have some.

    Args:
        inputs: As in `keras.Model`.
        outputs: As in `keras.Model`.
        arguments: Of the constructor that builds the layers, `name`, `trainable` and `dtype` among them. They become
            attributes.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    trained: ClassVar[Mapping[str, str]] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        model = super().__new__(cls, *args, **kwargs)
        try:
            bound = inspect.signature(cls.__init__).bind(model, *args, **kwargs)
        except TypeError:  # `__init__` says what is wrong; and Keras itself makes models without arguments
            return model
        bound.apply_defaults()
        _, *arguments = bound.arguments.items()
        values: dict[str, Any] = {}
        for name, value in arguments:
            kind = bound.signature.parameters[name].kind
            values |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
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
    def from_preset(cls: type[Model], preset: str, **overrides: Any) -> Model:
        """Creates a model from a named architecture, trained if the preset has weights (`trained`).

        Args:
            preset: One of `presets`.
            **overrides: Arguments that replace the preset's, such as `num_classes` and `image_shape`. With another
                `num_classes` a trained preset gets a new, untrained head.

        Raises:
            ValueError: No preset has that name, or its weights are damaged or don't fit the overrides.
        """
        if preset not in cls.presets:
            raise ValueError(f"Unknown preset {preset!r}. Known presets: {', '.join(sorted(cls.presets))}")
        arguments = cls.presets[preset]
        if overrides.get("num_classes", arguments["num_classes"]) != arguments["num_classes"]:
            overrides = {"class_names": None, **overrides}
        model = cls(**{"name": preset, **arguments, **overrides})
        if preset in cls.trained:
            new_head = model.num_classes != arguments["num_classes"] or not model.include_top
            file = pretrained.FOLDER / f"{preset}.npz"
            pretrained.load(model, file, cls.trained[preset], without=("head",) if new_head else ())
        return model

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
        values = {name: _deserialized(value, custom_objects) for name, value in config.items()}
        frozen = set(values.pop(_FROZEN, ()))
        model = cls(**values)
        for layer in model._flatten_layers(include_self=False):
            if layer.path in frozen:
                layer.trainable = False
        return model


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
