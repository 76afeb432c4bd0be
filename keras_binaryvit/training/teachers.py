"""AdaptedTeacher: any Keras classifier as the teacher of students that take other images."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_binaryvit.layers import ImagePreprocessor
from keras_binaryvit.typing import Tensor

# Probabilities below it count as this: a logarithm that float16 still holds.
_SMALLEST_PROBABILITY = 1e-30


def gives_probabilities(model: keras.Model) -> bool:
    """Returns whether the last layer of `model` is a softmax, or ends in one."""
    last = model.layers[-1] if model.layers else None
    if isinstance(last, keras.Model):
        return gives_probabilities(last)
    return isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax


class AdaptedTeacher(keras.Model):
    """A classifier that takes our normalized images and gives logits, made of one that takes other images.

    The images go back to 0 ... 255, to the teacher's size (bilinear), from grayscale to RGB if it wants three channels,
    and through its own preprocessing. A teacher that ends in a softmax has the logarithm of its probabilities as
    logits, which only differ by a constant from its own.

    With `keras.applications`:

    ```python
    network = keras.applications.MobileNetV2()
    preprocess = keras.applications.mobilenet_v2.preprocess_input
    teacher = AdaptedTeacher(network, student.preprocessor, preprocess=preprocess)
    ```

    A classifier of KerasHub gives logits, and has its preprocessing as a layer of its own, the `preprocessor`:

    ```python
    network = keras_hub.models.ImageClassifier.from_preset("resnet_50_imagenet")
    teacher = AdaptedTeacher(network, student.preprocessor, preprocess=network.preprocessor)
    ```

    Args:
        teacher: Any Keras model with one image as input and the scores of the classes as output.
        preprocessor: How our images were made: the student's `preprocessor`.
        preprocess: From float images of 0 ... 255, in the teacher's size, to what it takes, in operations of Keras; the
            teacher takes 0 ... 255 without. One that has learned with this `preprocessor` needs no `AdaptedTeacher`.
        classes: Index of each of our classes among the teacher's, for those who have more; all of them by default.
        from_logits: Whether the teacher gives logits, rather than probabilities; by default its last layer says so.

    Shapes: `(batch, height, width, channels)` normalized images give `(batch, classes)` logits.

    Raises:
        ValueError: The teacher has no weights yet, or `classes` aren't the teacher's.
    """

    def __init__(
        self,
        teacher: keras.Model,
        preprocessor: ImagePreprocessor,
        *,
        preprocess: Callable | None = None,
        classes: Sequence[int] | None = None,
        from_logits: bool | None = None,
    ):
        if not teacher.built:
            raise ValueError(f"The teacher {teacher.name!r} has no weights yet; call it on a batch of images first.")
        # float32 under every policy of the session, like the teachers themselves.
        super().__init__(name=f"adapted_{teacher.name}", dtype="float32")
        self.teacher = teacher
        self.preprocess = preprocess
        self.from_logits = not gives_probabilities(teacher) if from_logits is None else from_logits
        self._mean, self._std = (np.asarray(values, np.float32) for values in (preprocessor.mean, preprocessor.std))
        channels = len(preprocessor.mean)
        rows, columns, teacher_channels = _input_shape(teacher) or (None, None, channels)
        self._teacher_size: Any = None if None in (rows, columns) else (rows, columns)
        self._to_rgb = channels == 1 and teacher_channels == 3
        self.classes = None
        outputs = self.compute_output_spec(keras.KerasTensor((None, *preprocessor.image_size, channels)))
        if len(outputs.shape) != 2:
            raise ValueError(
                f"The teacher {teacher.name!r} must give (batch, classes). Received: output shape {outputs.shape}"
            )
        if classes is not None:
            count = outputs.shape[-1]
            if not len(classes) or not all(0 <= index < count for index in classes):
                raise ValueError(f"classes must be among the teacher's {count}. Received: classes={list(classes)}")
            self.classes = np.array(classes, "int32")
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        images = (inputs * self._std + self._mean) * 255
        if self._to_rgb:
            images = ops.repeat(images, 3, axis=-1)
        if self._teacher_size not in (None, tuple(images.shape[1:3])):
            shrinks = np.prod(self._teacher_size) < np.prod(images.shape[1:3])
            images = ops.image.resize(
                images, self._teacher_size, "bilinear", antialias=bool(shrinks), data_format="channels_last"
            )
        if self.preprocess is not None:
            images = self.preprocess(images)
        outputs = ops.cast(self.teacher(images, training=False), "float32")
        if not self.from_logits:
            outputs = ops.log(ops.maximum(outputs, _SMALLEST_PROBABILITY))
        return outputs if self.classes is None else ops.take(outputs, self.classes, axis=-1)


def _input_shape(model):
    """Returns `(height, width, channels)` that `model` takes, None where it takes any; None if it doesn't say."""
    shape = getattr(model, "input_shape", None)
    return tuple(shape[1:]) if isinstance(shape, tuple) and len(shape) == 4 else None
