"""Classifier: from an image to its most probable classes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from binaryvit_runtime.interpreter import Interpreter
from binaryvit_runtime.metadata import read_metadata
from binaryvit_runtime.preprocessing import Preprocessor


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A class that an image may belong to.

    Attributes:
        index: Of the class, counted from 0.
        label: Its name, or its index as text where the model has no names.
        probability: 0 to 1.
    """

    index: int
    label: str
    probability: float


class Classifier:
    """Classifies images with a `.tflite` model, prepared as its metadata says.

    Args:
        model: Path of a `.tflite` file, or its bytes.
        num_threads: Threads that share an inference.
        preprocessor: How to prepare images, for a model that doesn't say it, or in place of what it says.
        class_names: The classes' names in the order of the outputs, likewise.
        outputs: `"logits"` or `"probabilities"`, likewise; logits where neither says it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no model, or its metadata is damaged, or it doesn't take images and give classes, or
            nothing says how to prepare images, or an argument doesn't fit the model.
        RuntimeError: The model has an operator that is unknown or wrong.
    """

    def __init__(
        self,
        model: str | os.PathLike | bytes,
        num_threads: int = 1,
        *,
        preprocessor: Preprocessor | None = None,
        class_names: Sequence[str] | None = None,
        outputs: str | None = None,
    ):
        metadata = read_metadata(model)
        described = preprocessor or metadata.preprocessor
        if described is None:
            raise ValueError(
                "The model doesn't say how to prepare its images; give preprocessor=Preprocessor(mean, std) with the "
                "values of training."
            )
        self.preprocessor = described
        self._outputs = outputs or metadata.outputs or "logits"
        if self._outputs not in ("logits", "probabilities"):
            raise ValueError(f"outputs must be 'logits' or 'probabilities'. Received: {outputs!r}")
        self._interpreter = Interpreter(model, num_threads)
        inputs, results = self._interpreter.input_shapes, self._interpreter.output_shapes
        channels = len(self.preprocessor.mean)
        if len(inputs) != 1 or len(inputs[0]) != 4 or inputs[0][3] not in (1, 3):
            raise ValueError(f"A classifier takes images (batch, height, width, 1 or 3). This model takes {inputs}")
        if inputs[0][3] != channels:
            raise ValueError(f"The model takes {inputs[0][3]} channels, and mean and std have {channels}.")
        if self._interpreter.input_dtypes != [np.float32]:
            raise ValueError(f"A classifier takes float32. This model takes {self._interpreter.input_dtypes[0]}")
        if len(results) != 1 or len(results[0]) != 2:
            raise ValueError(f"A classifier gives (batch, classes). This model gives {results}")
        self._batch, self._height, self._width = inputs[0][:3]
        names = class_names if class_names is not None else metadata.class_names
        if names is None:
            names = [str(index) for index in range(results[0][1])]
        if len(names) != results[0][1]:
            raise ValueError(f"The model has {results[0][1]} classes, and there are {len(names)} class names.")
        self.class_names = tuple(names)

    def classify(self, images: Any, top: int = 5) -> Any:
        """Returns the most probable classes, the first one first; all of them if there are fewer than `top`.

        Args:
            images: An image or a list of them. An image is the path of a file that Pillow reads, an image of Pillow's,
                or uint8 `(height, width)` or `(height, width, channels)`, grayscale or RGB.
            top: How many to return.

        Returns:
            A list of `Prediction`; for a list of images, one such list for each.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no image, or damaged, or `top` isn't positive.
        """
        if top < 1:
            raise ValueError(f"top must be positive. Received: {top}")
        if not isinstance(images, (list, tuple)):
            return self.classify([images], top)[0]
        if not images:
            return []
        prepared = np.stack([self.preprocessor(image, self._height, self._width) for image in images])
        missing = -len(images) % self._batch  # the model takes whole batches
        prepared = np.concatenate([prepared, np.repeat(prepared[-1:], missing, axis=0)])
        scores = self._interpreter.predict(prepared)[: len(images)].astype(np.float64)
        if self._outputs == "logits":
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
        order = np.argsort(-scores, axis=-1, kind="stable")[:, :top]
        return [
            [Prediction(int(index), self.class_names[index], float(row[index])) for index in best]
            for best, row in zip(order, scores)
        ]
