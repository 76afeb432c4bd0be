"""ImageClassifier: what the networks share at their end, from features to logits."""

import keras

from keras_binaryvit.layers.projection import kernel_initializer
from keras_binaryvit.models.preset_model import PresetModel
from keras_binaryvit.typing import Tensor

_POOLINGS = (None, "avg", "max", "token")


class ImageClassifier(PresetModel):
    """A network that gives logits for images, or with `include_top=False` features.

    A subclass has the arguments `image_shape`, `num_classes`, `include_top` and `pooling`.
    """


def top(
    features: Tensor, num_classes: int, include_top: bool, pooling: str | None, class_token: bool, dtype: object
) -> Tensor:
    """Returns what a network gives for its last features, `(batch, ..., channels)`.

    Args:
        features: A feature map or a sequence; a class token is at the first position.
        num_classes: Number of logits.
        include_top: Whether to compute logits from the pooled features.
        pooling: `"avg"`, `"max"`, `"token"`, or `None` for the features as they are. With `include_top`, `None` means
            `"token"` if there is a class token, else `"avg"`.
        class_token: Whether the features have a class token.
        dtype: Policy of the pooling layers.

    Raises:
        ValueError: `pooling` is none of these, or `"token"` and there is no class token.
    """
    if pooling not in _POOLINGS or (pooling == "token" and not class_token):
        known = ", ".join(repr(name) for name in _POOLINGS if class_token or name != "token")
        raise ValueError(f"pooling must be one of {known}. Received: pooling={pooling!r}, class_token={class_token}")
    if include_top and pooling is None:
        pooling = "token" if class_token else "avg"
    if pooling is None:
        return features
    _, positions, *sides, channels = features.shape
    layers = keras.layers
    if pooling == "token":
        cut = ((0, positions - 1), (0, 0)) if sides else (0, positions - 1)
        crop = (
            layers.Cropping2D(cut, data_format="channels_last", dtype=dtype, name="class_token")
            if sides
            else (layers.Cropping1D(cut, dtype=dtype, name="class_token"))
        )
        features = crop(features)
    if pooling == "max":
        kind = layers.GlobalMaxPooling2D if sides else layers.GlobalMaxPooling1D
    else:
        kind = layers.GlobalAveragePooling2D if sides else layers.GlobalAveragePooling1D
    vector = kind(data_format="channels_last", dtype=dtype, name="pooling")(features)
    return classification_head(num_classes, channels)(vector) if include_top else vector


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
