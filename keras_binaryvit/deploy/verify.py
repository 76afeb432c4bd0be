"""verify: whether a flatbuffer computes what the model does."""

import dataclasses

import keras
import numpy as np

from keras_binaryvit.deploy.lce import predict


class VerificationError(RuntimeError):
    """A flatbuffer disagrees with its model."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """How a flatbuffer compares with its Keras model on some images.

    Attributes:
        num_images: How many.
        agreement: Share with the same top-1 class.
        largest_difference: Of any logit, relative to the largest logit's magnitude.
        mean_difference: Of all logits, relative to the same.
        model_accuracy: Top-1 of the Keras model, `None` without labels.
        flatbuffer_accuracy: Top-1 of the flatbuffer, `None` without labels.
    """

    num_images: int
    agreement: float
    largest_difference: float
    mean_difference: float
    model_accuracy: float | None
    flatbuffer_accuracy: float | None


def verify(
    model: keras.Model,
    flatbuffer: bytes,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    min_agreement: float = 0.995,
    progress: bool = False,
) -> Verification:
    """Runs `flatbuffer` in LCE's interpreter and compares its logits with those of `model`.

    Args:
        model: The Keras model, trained or frozen.
        flatbuffer: What `convert` made of it.
        images: `(batch, height, width, channels)`, normalised as in training.
        labels: `(batch,)` class indices, for the accuracies.
        min_agreement: The smallest share of images with the same top-1 class.
        progress: Whether to show a progress bar.

    Raises:
        VerificationError: The agreement is smaller, or logits aren't finite.
        ValueError: There are no images, or they don't fit the model.
    """
    images = np.asarray(images, np.float32)
    if not len(images):
        raise ValueError("There are no images to verify with.")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"Each image needs a label. Received: {len(images)} images, {len(labels)} labels")
    actual = predict(flatbuffer, images, progress=progress)
    expected = model.predict(images, batch_size=min(64, len(images)), verbose=0)
    if not np.isfinite(actual).all() or not np.isfinite(expected).all():
        raise VerificationError("Logits are not finite; the model diverged in training, or its weights are damaged.")
    difference = np.abs(actual - expected) / max(np.abs(expected).max(), np.finfo(np.float32).tiny)
    classes, expected_classes = actual.argmax(-1), expected.argmax(-1)
    result = Verification(
        num_images=len(images),
        agreement=float(np.mean(classes == expected_classes)),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        model_accuracy=None if labels is None else float(np.mean(expected_classes == labels)),
        flatbuffer_accuracy=None if labels is None else float(np.mean(classes == labels)),
    )
    if result.agreement < min_agreement:
        raise VerificationError(
            f"The flatbuffer and the model agree on {result.agreement:.2%} of {len(images)} images, less than the "
            f"{min_agreement:.2%} asked for. {result}"
        )
    return result
