"""ImageClassifier: what the networks share around their body, from pixels to classes."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_binaryvit.images import read_image
from keras_binaryvit.layers.binary_kernels import initial_kernel
from keras_binaryvit.layers.image_preprocessor import ImagePreprocessor
from keras_binaryvit.models.preset_model import PresetModel
from keras_binaryvit.typing import Tensor

_POOLINGS = (None, "avg", "max", "token")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A class that an image may belong to.

    Attributes:
        index: Of the class, counted from 0.
        label: Its name, or its index as text where the model has no `class_names`.
        probability: 0 to 1.
    """

    index: int
    label: str
    probability: float


class ImageClassifier(PresetModel):
    """A network that gives logits for images, or with `include_top=False` features.

    Float images are normalized, as its `preprocessor` gives them; integer images are pixels in 0 to 255, of the size
    that the network takes, and it normalizes them itself.

    Args:
        inputs: As in `keras.Model`.
        outputs: As in `keras.Model`.
        arguments: As in `PresetModel`; `image_shape`, `num_classes`, `include_top`, `preprocessor` and `class_names`
            are among them.
    """

    def __init__(self, inputs: Any, outputs: Any, arguments: Mapping[str, Any]):
        super().__init__(inputs, outputs, arguments)
        if self.class_names is not None and self.include_top and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names must have one name for each of num_classes={self.num_classes}. "
                f"Received: {len(self.class_names)} names"
            )
        preprocessor = self.preprocessor
        if preprocessor is None:
            return
        expected = (*preprocessor.image_size, len(preprocessor.mean))
        if expected != tuple(self.image_shape):
            raise ValueError(
                f"The preprocessor gives images of shape {expected}. Received: image_shape={tuple(self.image_shape)}"
            )

    @property
    def preprocessor(self) -> ImagePreprocessor | None:
        """How images become what the model takes, `None` if unknown."""
        # Not an attribute that Keras would track: it is no layer of the network.
        return self._arguments["preprocessor"]

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        if _is_integer(inputs):
            inputs = self._check_images(inputs).normalize(inputs)
        return super().call(inputs, training=training, mask=mask)

    # On JAX, an error inside of these would leave a model without weights.

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`."""
        self._check_images(x)
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`."""
        self._check_images(x)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`."""
        self._check_images(x)
        return super().predict(x, *args, **kwargs)

    def _check_images(self, x):
        """Returns the preprocessor; integer images need it."""
        if not _is_integer(x):
            return self.preprocessor
        if self.preprocessor is None:
            raise TypeError(
                f"The model {self.name!r} received integer images, which are pixels, and it has no preprocessor to "
                "normalize them with. Give it one, BinaryViT(..., preprocessor=ImagePreprocessor(...)), or normalize "
                "the images first."
            )
        shape = getattr(x, "shape", None)
        if shape is not None and None not in shape[1:] and tuple(shape[1:]) != tuple(self.image_shape):
            raise ValueError(
                f"The model {self.name!r} takes images of shape {tuple(self.image_shape)}; resize them with "
                f"model.preprocessor(images). Received: shape {tuple(shape)}"
            )
        return self.preprocessor

    def classify(self, images: Any, top: int = 5, batch_size: int = 32) -> list[list[Prediction]]:
        """Returns the most probable classes of each image, the first one first.

        Args:
            images: An image or a sequence of them. An image is the path of a file that Pillow reads, an image of
                Pillow's, or uint8 `(height, width)` or `(height, width, channels)`; EXIF orientation is applied.
            top: How many classes to return.
            batch_size: Images that are computed together.

        Returns:
            A list for each image, also where there is one.

        Raises:
            FileNotFoundError: There is no such file.
            ImportError: Pillow isn't installed, and an image isn't an array.
            TypeError: An image is none of these.
            ValueError: The model has no preprocessor or no head, a file is damaged, or `top` isn't positive.
        """
        if self.preprocessor is None or not self.include_top:
            raise ValueError(
                f"The model {self.name!r} can't classify: it was created without a preprocessor or without its top."
            )
        if top < 1 or batch_size < 1:
            raise ValueError(f"top and batch_size must be positive. Received: top={top}, batch_size={batch_size}")
        single = isinstance(images, str | os.PathLike) or hasattr(images, "convert")
        single = single or (isinstance(images, np.ndarray) and images.ndim < 4)
        arrays = [read_image(image, self.image_shape[-1]) for image in ([images] if single else images)]
        prepared = [keras.ops.convert_to_numpy(self.preprocessor(array)) for array in arrays]
        if not prepared:
            return []
        logits = self.predict(np.stack(prepared), batch_size=batch_size, verbose=0).astype(np.float64)
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        names = self.class_names or [str(index) for index in range(self.num_classes)]
        order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
        return [
            [Prediction(int(index), names[index], float(row[index])) for index in best]
            for best, row in zip(order, probabilities, strict=True)
        ]


def _is_integer(x):
    first, *_ = keras.tree.flatten(getattr(x, "element_spec", x)) or [None]  # of a data set, what its elements are
    dtype = getattr(first, "dtype", None)
    return dtype is not None and "int" in keras.backend.standardize_dtype(dtype)


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
        raise ValueError(
            f"pooling must be one of {known}. Received: pooling={pooling!r}, use_class_token={class_token}"
        )
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
        kernel_initializer=initial_kernel(None),
        bias_initializer=keras.initializers.RandomUniform(-limit, limit),
        dtype="float32",  # logits, whatever the policy: a loss in half precision is no place to save
        name="head",
    )
