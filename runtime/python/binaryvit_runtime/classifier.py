"""Classifier: from an image to its most probable classes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from binaryvit_runtime.files import read_model
from binaryvit_runtime.interpreter import Interpreter
from binaryvit_runtime.metadata import read_metadata
from binaryvit_runtime.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image


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
        preprocessing: How to prepare images, for a model that doesn't say it, or in place of what it says.
        labels: The classes' names in the order of the outputs, likewise.
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
        preprocessing: Preprocessing | None = None,
        labels: Sequence[str] | None = None,
        outputs: str | None = None,
    ):
        content = read_model(model)
        metadata = read_metadata(content)
        described = preprocessing or metadata.preprocessing
        if described is None:
            raise ValueError(
                "The model doesn't say how to prepare its images; give preprocessing=Preprocessing(mean, std) with the "
                "values of training."
            )
        self.preprocessing = described
        self._outputs = outputs or metadata.outputs or "logits"
        if self._outputs not in ("logits", "probabilities"):
            raise ValueError(f"outputs must be 'logits' or 'probabilities'. Received: {outputs!r}")
        self._interpreter = Interpreter(content, num_threads)
        inputs, results = self._interpreter.input_shapes, self._interpreter.output_shapes
        channels = len(self.preprocessing.mean)
        if len(inputs) != 1 or len(inputs[0]) != 4 or inputs[0][0] != 1 or inputs[0][3] not in (1, 3):
            raise ValueError(f"A classifier takes one image (1, height, width, 1 or 3). This model takes {inputs}")
        if inputs[0][3] != channels:
            raise ValueError(f"The model takes {inputs[0][3]} channels, and mean and std have {channels}.")
        if self._interpreter.input_dtypes != [np.float32]:
            raise ValueError(f"A classifier takes float32. This model takes {self._interpreter.input_dtypes[0]}")
        if len(results) != 1 or len(results[0]) != 2:
            raise ValueError(f"A classifier gives (1, classes). This model gives {results}")
        self._height, self._width = inputs[0][1:3]
        names = labels if labels is not None else metadata.labels
        if names is None:
            names = [str(index) for index in range(results[0][1])]
        if len(names) != results[0][1]:
            raise ValueError(f"The model has {results[0][1]} classes, and there are {len(names)} labels.")
        self.labels = tuple(names)

    def classify(self, image: str | os.PathLike | Image | np.ndarray, top_k: int = 5) -> list[Prediction]:
        """Returns the most probable classes, the first one first; all of them if there are fewer than `top_k`.

        Args:
            image: Path of a file that Pillow reads, an image of Pillow's, or uint8 `(height, width)` or
                `(height, width, channels)`, grey or RGB.
            top_k: How many to return.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no image, or damaged, or `top_k` isn't positive.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be positive. Received: {top_k}")
        prepared = self.preprocessing(image, self._height, self._width)
        scores = self._interpreter.predict(prepared[np.newaxis])[0].astype(np.float64)
        if self._outputs == "logits":
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Prediction(int(index), self.labels[index], float(scores[index])) for index in order]
