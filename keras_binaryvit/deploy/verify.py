"""verify: whether a flatbuffer computes what the model does, and if not, from which layer on."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_binaryvit.deploy import flatbuffer as flatbuffers
from keras_binaryvit.deploy import lce_layers
from keras_binaryvit.deploy.compare import SAMPLES, whole_difference
from keras_binaryvit.deploy.freeze import freeze
from keras_binaryvit.deploy.graph import SEPARATOR, ConversionError
from keras_binaryvit.deploy.inspect import inspect
from keras_binaryvit.deploy.interpreters import (
    Inputs,
    interpreter_of,
    is_fused,
    outputs_of,
    prepared,
    random_inputs,
    run,
)
from keras_binaryvit.deploy.lower import graph_of


class VerificationError(RuntimeError):
    """A flatbuffer disagrees with its model."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """How a flatbuffer compares with its Keras model on some images.

    Attributes:
        num_images: How many.
        agreement: Share with the same top-1 class, or with another whose logit lies within 1e-6 of the largest; of
            several outputs the smallest.
        largest_difference: Of any logit, relative to the largest logit's magnitude; of several outputs the largest.
        mean_difference: Of all logits, relative to the same, likewise.
        model_accuracy: Top-1 of the Keras model's first output, `None` without labels.
        flatbuffer_accuracy: Top-1 of the flatbuffer's first output, `None` without labels.
        first_difference: Where images got different classes, the first layer whose outputs differ, and by how much.
        model_logits: `(num_images, num_classes)`; of several outputs the first.
        flatbuffer_logits: The same of the flatbuffer.
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
    images: Inputs,
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
        images: `(batch, height, width, channels)`, prepared as in training and of the file's type; for several inputs
            as in `run`.
        labels: `(batch,)` class indices, for the accuracies.
        min_agreement: The smallest share of images with the same top-1 class.
        max_mean_difference: The largest mean difference of logits, relative to the largest logit.
        progress: Whether to show a progress bar.

    Raises:
        VerificationError: They agree less than that, or logits aren't finite.
        TypeError: The images are integers and the model takes floats, or the other way round.
        ValueError: There are no images, or they don't fit the model.
        ImportError: The Larq Compute Engine or binaryvit-runtime isn't installed.
    """
    inputs = prepared(flatbuffers.read(flatbuffer), images)
    count = len(inputs[0])
    if labels is not None and len(labels) != count:
        raise ValueError(f"Each image needs a label. Received: {count} images, {len(labels)} labels")
    actual = keras.tree.flatten(run(flatbuffer, inputs, progress=progress))
    expected = _outputs(model, inputs)
    shapes = [array.shape for array in expected], [array.shape for array in actual]
    if shapes[0] != shapes[1]:
        raise ValueError(f"The model gives outputs of shape {shapes[0]}, the flatbuffer {shapes[1]}.")
    if not all(np.isfinite(array).all() for array in (*actual, *expected)):
        raise VerificationError("Logits are not finite; the model diverged in training, or its weights are damaged.")
    compared = [_compare(a, b) for a, b in zip(actual, expected, strict=True)]
    differing = np.flatnonzero(np.any([disagrees for disagrees, _ in compared], axis=0))
    accuracies = [None if labels is None else float(np.mean(x[0].argmax(-1) == labels)) for x in (expected, actual)]
    first = first_difference(model, flatbuffer, [x[differing[0]] for x in inputs]) if len(differing) else None
    result = Verification(
        num_images=count,
        agreement=min(float(1 - np.mean(disagrees)) for disagrees, _ in compared),
        largest_difference=max(float(difference.max()) for _, difference in compared),
        mean_difference=max(float(difference.mean()) for _, difference in compared),
        model_accuracy=accuracies[0],
        flatbuffer_accuracy=accuracies[1],
        first_difference=first,
        model_logits=expected[0],
        flatbuffer_logits=actual[0],
    )
    if result.agreement < min_agreement or result.mean_difference > max_mean_difference:
        raise VerificationError(
            f"The flatbuffer and the model agree on {result.agreement:.2%} of {count} images; "
            f"{min_agreement:.2%} are asked for. Their logits differ by {result.mean_difference:.1e} of the largest in "
            f"the mean; {max_mean_difference:.1e} are allowed. {result}"
        )
    return result


def check_file(frozen: keras.Model, flatbuffer: bytes) -> None:
    """Compares a file with the frozen model that it was made of, on random inputs, where an interpreter is installed.

    Converters merge operators, and not always rightly. An output that differs by more than flipped bits explain, or a
    file that can't run, is a ConversionError.
    """
    inputs = random_inputs(flatbuffers.read(flatbuffer), SAMPLES)
    try:
        actual = keras.tree.flatten(run(flatbuffer, inputs))
    except ImportError:
        return
    except RuntimeError as error:
        raise ConversionError(f"The interpreter can't run the file: {error}") from error
    if difference := whole_difference(actual, _outputs(frozen, inputs)):
        first = first_difference(frozen, flatbuffer, [array[0] for array in inputs])
        named = f" The first layer that differs is {first}." if first else ""
        raise ConversionError(f"{difference} when the file is run.{named}")


def _compare(actual, expected):
    """Returns for each image whether its classes differ, and all differences relative to the largest value."""
    actual, expected = (
        array.astype(np.float32).reshape(len(array), -1, array.shape[-1]) for array in (actual, expected)
    )
    largest = _largest(expected)
    chosen = np.take_along_axis(expected, actual.argmax(-1)[..., None], axis=-1)[..., 0]
    return np.any(expected.max(-1) - chosen > 1e-6 * largest, axis=1), np.abs(actual - expected) / largest


def _largest(values):
    return max(np.abs(values).max(), np.finfo(np.float32).tiny)


def _outputs(model, inputs):
    """Returns all outputs of a Keras model for an array for each of its inputs."""
    size = 8 if len(inputs[0]) <= 64 else 64  # a few images are through before predict has traced a large model
    fixed = model.inputs[0].shape[0] if hasattr(model, "inputs") else None
    starts = range(0, len(inputs[0]), fixed or size)
    batches = [[array[start : start + (fixed or size)] for array in inputs] for start in starts]
    compute = model.predict_on_batch if size > 8 else lambda batch: model(batch, training=False)
    outputs = [keras.tree.flatten(compute(structured(model, batch))) for batch in batches]
    return [np.concatenate([keras.ops.convert_to_numpy(x) for x in parts]) for parts in zip(*outputs, strict=True)]


def structured(model: keras.Model, inputs: list[np.ndarray]) -> Any:
    """Returns an array for each input of a model in the structure that it takes."""
    structure = getattr(model, "_inputs_struct", None)
    return keras.tree.pack_sequence_as(graph_of(model).input if structure is None else structure, inputs)


def first_difference(model: keras.Model, flatbuffer: bytes, inputs: Inputs, tolerance: float = 1e-4) -> str | None:
    """Returns the first layer of the frozen model from which on `flatbuffer` differs up to an output, and by how much.

    A tensor with the name and the shape of a layer's output may be another: converters compute `(x + a) + b` as
    `x + (a + b)`, and give the inner sum the layer's name. Such a layer differs and its readers don't. So a layer
    counts only where the difference goes on through its readers, those in between that can't be compared let through,
    to an output; outputs are compared by their order.

    Args:
        model: The Keras model, trained or frozen.
        flatbuffer: What `convert` made of it.
        inputs: One image, `(height, width, channels)`; for several inputs as in `run`.
        tolerance: The largest difference relative to the layer's largest output that counts as equal.

    Returns:
        Such as `"block_3-attention-add: 12 of 50176 values, by up to 0.031 of the largest"`, or `None`.
    """
    content = flatbuffers.read(flatbuffer)
    size = content.inputs[0].shape[0]
    batch = [np.repeat(np.asarray(array)[None], size, axis=0) for array in keras.tree.flatten(inputs)]
    arrays = prepared(content, batch)
    frozen = freeze(model, "fused" if is_fused(flatbuffer) else "lce", check=False)
    tensors = _tensors_by_layer(flatbuffer, frozen)
    expected = keras.Model(frozen.input, [operation.output for operation in tensors])(
        structured(frozen, arrays), training=False
    )
    actual = outputs_of(interpreter_of(_with_outputs(flatbuffer, list(tensors.values()))), arrays)
    differences = {}
    for operation, *pair in zip(tensors, keras.tree.flatten(expected), actual, strict=True):
        a, b = (np.asarray(keras.ops.convert_to_numpy(array), np.float32).reshape(-1) for array in pair)
        difference = np.abs(a - b) / _largest(a)
        count = int(np.sum(difference > tolerance))
        found = f"{operation.name}: {count} of {a.size} values, by up to {difference.max():.2g} of the largest"
        differences[operation] = found if count else None
    ends = {tensor._keras_history.operation for tensor in frozen.outputs}
    first, goes_on = None, set[keras.Operation]()
    for operation in reversed(frozen.operations):
        readers = {node.operation for node in operation._outbound_nodes}
        if (operation in ends or readers & goes_on) and differences.get(operation, "can't be compared"):
            goes_on.add(operation)
            first = differences.get(operation) or first
    return first


def _tensors_by_layer(flatbuffer, frozen):
    """Returns the tensors to compare, by the operation of `frozen` whose output they may be."""
    graph = flatbuffers.unpack(flatbuffer).subgraphs[0]
    named = {}
    for source, operator in zip(graph.operators, inspect(flatbuffer).operators, strict=False):  # other graphs' follow
        for shape in operator.output_shapes:
            named[operator.origin.replace("/", SEPARATOR), shape[1:]] = source.outputs[0]  # the last one of a layer
    found = {}
    for layer in frozen.layers:
        key = layer.name, tuple(layer.output.shape[1:])
        if key in named and not isinstance(layer, lce_layers.Sign):  # the flatbuffer has its bits
            found[named[key]] = layer
    for tensor, index in zip(frozen.outputs, graph.outputs, strict=True):
        found[index] = tensor._keras_history.operation
    return {operation: index for index, operation in found.items()}


def _with_outputs(flatbuffer, tensors):
    """Returns `flatbuffer` with these tensors as its outputs."""
    model = flatbuffers.unpack(flatbuffer)
    graph = model.subgraphs[0]
    graph.outputs = tensors
    # XNNPACK aborts where it is left with operators whose outputs nobody reads.
    needed, kept = set(tensors), []
    for operator in reversed(graph.operators):
        if needed.intersection(operator.outputs):
            needed.update(operator.inputs)
            kept.append(operator)
    graph.operators = kept[::-1]
    model.signatureDefs = []
    return flatbuffers.pack(model)
