"""verify: whether a flatbuffer computes what the model does, and if not, from which layer on."""

import dataclasses

import keras
import numpy as np

from keras_binaryvit.deploy import lce_layers, rewrite
from keras_binaryvit.deploy.freeze import freeze
from keras_binaryvit.deploy.graph import SEPARATOR
from keras_binaryvit.deploy.inspect import inspect
from keras_binaryvit.deploy.lce import interpreter_of, is_fused, predict


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
        first_difference: Where images got different classes, the first layer whose outputs differ, and by how much.
        model_logits: `(num_images, num_classes)`.
        flatbuffer_logits: `(num_images, num_classes)`.
    """

    num_images: int
    agreement: float
    largest_difference: float
    mean_difference: float
    model_accuracy: float | None
    flatbuffer_accuracy: float | None
    first_difference: str | None
    model_logits: np.ndarray = dataclasses.field(repr=False, compare=False)
    flatbuffer_logits: np.ndarray = dataclasses.field(repr=False, compare=False)


def verify(
    model: keras.Model,
    flatbuffer: bytes,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    min_agreement: float = 0.995,
    max_mean_difference: float = 0.01,
    progress: bool = False,
) -> Verification:
    """Runs `flatbuffer` and compares its logits with those of `model`.

    LCE's interpreter runs it, or binaryvit-runtime where it has fused operators.

    Rounding may flip a bit that lies within 1e-6 of its threshold, and later bits with it: logits of single images may
    differ visibly, their mean doesn't. 1e-6 is eight units in the last place: more than the `exp` of a softmax and the
    `rsqrt` of Keras' own BatchNormalization differ by between processors.

    Args:
        model: The Keras model, trained or frozen.
        flatbuffer: What `convert` made of it.
        images: `(batch, height, width, channels)`, normalised as in training.
        labels: `(batch,)` class indices, for the accuracies.
        min_agreement: The smallest share of images with the same top-1 class.
        max_mean_difference: The largest mean difference of logits, relative to the largest logit.
        progress: Whether to show a progress bar.

    Raises:
        VerificationError: They agree less than that, or logits aren't finite.
        ValueError: There are no images, or they don't fit the model.
        ImportError: The Larq Compute Engine or binaryvit-runtime isn't installed.
    """
    images = np.asarray(images, np.float32)
    if not len(images):
        raise ValueError("There are no images to verify with.")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"Each image needs a label. Received: {len(images)} images, {len(labels)} labels")
    actual = predict(flatbuffer, images, progress=progress)
    expected = _logits(model, images)
    if expected.shape != actual.shape:
        raise ValueError(f"The model gives logits of shape {expected.shape}, the flatbuffer {actual.shape}.")
    if not np.isfinite(actual).all() or not np.isfinite(expected).all():
        raise VerificationError("Logits are not finite; the model diverged in training, or its weights are damaged.")
    difference = np.abs(actual - expected) / max(np.abs(expected).max(), np.finfo(np.float32).tiny)
    classes, expected_classes = actual.argmax(-1), expected.argmax(-1)
    differing = np.flatnonzero(classes != expected_classes)
    result = Verification(
        num_images=len(images),
        agreement=float(np.mean(classes == expected_classes)),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        model_accuracy=None if labels is None else float(np.mean(expected_classes == labels)),
        flatbuffer_accuracy=None if labels is None else float(np.mean(classes == labels)),
        first_difference=first_difference(model, flatbuffer, images[differing[0]]) if len(differing) else None,
        model_logits=expected,
        flatbuffer_logits=actual,
    )
    if result.agreement < min_agreement or result.mean_difference > max_mean_difference:
        raise VerificationError(
            f"The flatbuffer and the model agree on {result.agreement:.2%} of {len(images)} images; "
            f"{min_agreement:.2%} are asked for. Their logits differ by {result.mean_difference:.1e} of the largest in "
            f"the mean; {max_mean_difference:.1e} are allowed. {result}"
        )
    return result


def _logits(model, images):
    if len(images) <= 64:  # a few images are through before predict has traced a large model
        batches = [model(batch, training=False) for batch in np.array_split(images, -(-len(images) // 8))]
        return np.concatenate([keras.ops.convert_to_numpy(batch) for batch in batches])
    return model.predict(images, batch_size=64, verbose=0)


def first_difference(model: keras.Model, flatbuffer: bytes, image: np.ndarray, tolerance: float = 1e-4) -> str | None:
    """Returns the first layer of the frozen model whose outputs in `flatbuffer` differ, and by how much.

    Args:
        model: The Keras model, trained or frozen.
        flatbuffer: What `convert` made of it.
        image: `(height, width, channels)`.
        tolerance: The largest difference relative to the layer's largest output that counts as equal.

    Returns:
        Such as `"block_3-attention-add: 12 of 50176 values, by up to 0.031 of the largest"`, or `None`.
    """
    fused = is_fused(flatbuffer)
    frozen = freeze(model, "fused" if fused else "lce")
    watched = _outputs_by_layer(flatbuffer)
    named = {(layer.name, tuple(layer.output.shape[1:])): layer for layer in frozen.layers if not _is_packed(layer)}
    layers = [layer for key, layer in named.items() if key in watched]
    indices = [watched[key] for key in named if key in watched]
    expected = keras.Model(frozen.inputs, [layer.output for layer in layers])([image[None]], training=False)
    if fused:  # the runtime's interpreter predicts one output; it is made for each layer, up to the first that differs
        actual = (interpreter_of(_with_outputs(flatbuffer, [index])).predict(image[None]) for index in indices)
    else:
        actual = interpreter_of(_with_outputs(flatbuffer, indices)).predict(image[None])
    for layer, a, b in zip(layers, keras.tree.flatten(expected), actual, strict=True):
        a = keras.ops.convert_to_numpy(a).reshape(-1)
        difference = np.abs(a - b.reshape(-1)) / max(np.abs(a).max(), np.finfo(np.float32).tiny)
        if difference.max() > tolerance:
            count = int(np.sum(difference > tolerance))
            return f"{layer.name}: {count} of {a.size} values, by up to {difference.max():.2g} of the largest"
    return None


def _is_packed(layer):
    return isinstance(layer, lce_layers.Sign)  # the flatbuffer has its bits


def _outputs_by_layer(flatbuffer):
    """Returns the number of the operator that computes each layer's output, by the layer's name and the shape."""
    found = {}
    for index, operator in enumerate(inspect(flatbuffer).operators):
        name = operator.origin.replace("/", SEPARATOR)
        for shape in operator.output_shapes:
            found[name, shape[1:]] = index  # the last one of a layer
    return found


def _with_outputs(flatbuffer, operators):
    """Returns `flatbuffer` with the outputs of these operators as its outputs."""
    model = rewrite.unpack(flatbuffer)
    graph = model.subgraphs[0]
    graph.outputs = [graph.operators[index].outputs[0] for index in operators]
    # XNNPACK aborts where it is left with operators whose outputs nobody reads.
    needed, kept = set(graph.outputs), []
    for operator in reversed(graph.operators):
        if needed.intersection(operator.outputs):
            needed.update(operator.inputs)
            kept.append(operator)
    graph.operators = kept[::-1]
    model.signatureDefs = []
    return rewrite.pack(model)
