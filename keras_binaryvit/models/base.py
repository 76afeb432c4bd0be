"""What the models share: named architectures, and the real-valued head."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import keras

from keras_binaryvit.layers.projection import kernel_initializer
from keras_binaryvit.models import pretrained

Model = TypeVar("Model", bound="PresetModel")


class PresetModel(keras.Model):
    """A functional model with named architectures.

    A subclass sets `presets` to its arguments by name, and `trained` to the SHA-256 of the weights that come with the
    package, for those presets that have some.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    trained: ClassVar[Mapping[str, str]] = {}

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
        model = cls(**{"name": preset, **arguments, **overrides})
        if preset in cls.trained:
            new_head = model.num_classes != arguments["num_classes"]
            file = pretrained.FOLDER / f"{preset}.npz"
            pretrained.load(model, file, cls.trained[preset], without=("head",) if new_head else ())
        return model

    def make_train_function(self, force: bool = False) -> Any:
        """As Keras' own, with an optimizer that is built: TensorFlow traces a step that makes variables twice."""
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    @classmethod
    def from_config(cls: type[Model], config: dict, custom_objects: dict | None = None) -> Model:
        """Creates the model from `get_config()`."""
        config = dict(config)
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.saving.deserialize_keras_object(config["dtype"])
        return cls(**config)


def classification_head(num_classes: int, channels: int) -> keras.layers.Dense:
    """Returns the real-valued dense layer from `channels` features to logits, with the authors' initial weights."""
    limit = channels**-0.5
    return keras.layers.Dense(
        num_classes,
        kernel_initializer=kernel_initializer(),
        bias_initializer=keras.initializers.RandomUniform(-limit, limit),
        dtype="float32",  # logits, whatever the policy: a loss in half precision is no place to save
        name="head",
    )
