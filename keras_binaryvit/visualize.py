"""Figures of models and training: attention maps, latent weights, quantizers, learning curves, confusion matrices.

Each function returns a matplotlib figure, to be shown by a notebook or written with `figure.savefig("name.png")`. None
touches pyplot's global state: they work without a display, and in threads.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_binaryvit import quantizers
from keras_binaryvit.layers import BinaryTransformerBlock
from keras_binaryvit.layers.quantized import QuantizedKernel
from keras_binaryvit.typing import QuantizerLike, Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _RED = "#2a6f97", "#c1121f"


def attention_maps(
    model: keras.Model,
    image: Tensor,
    blocks: Sequence[int] | None = None,
    head: int | None = None,
    query: tuple[int, int] | None = None,
) -> "Figure":
    """Draws where the attention of each block looks, over the image.

    A position's color is the mean of the attention that it gets, relative to the map's largest.

    Args:
        model: A model with `BinaryTransformerBlock`s, such as `BinaryViT`; no frozen one.
        image: `(height, width, channels)`, normalized as the model takes it.
        blocks: Which blocks to draw, by number; all by default.
        head: Which head; the mean over all by default.
        query: The pixel `(row, column)` whose attention is drawn. By default the class token's or, in a model without
            one, the mean over all positions.

    Returns:
        A `matplotlib.figure.Figure` with the image and a panel for each block.

    Raises:
        ValueError: The model has no such blocks, or image, block, head or pixel aren't there.
        ImportError: matplotlib is missing.
    """
    all_blocks = [layer for layer in model.layers if isinstance(layer, BinaryTransformerBlock)]
    if not all_blocks:
        raise ValueError(
            f"The model {model.name!r} has no BinaryTransformerBlock. Pass a model as it is trained, not a frozen one."
        )
    image = np.asarray(image, "float32")
    if image.shape != tuple(model.input_shape[1:]):
        raise ValueError(f"The model takes one image of shape {model.input_shape[1:]}. Received: shape {image.shape}")
    if query is not None and not all(0 <= at < side for at, side in zip(query, image.shape, strict=False)):
        raise ValueError(f"query is a pixel (row, column) of the {image.shape[:2]} image. Received: query={query}")
    numbers = range(len(all_blocks)) if blocks is None else blocks
    for number in numbers:
        if not 0 <= number < len(all_blocks):
            raise ValueError(f"The model has the blocks 0 ... {len(all_blocks) - 1}. Received: blocks={blocks}")
    chosen = [all_blocks[number] for number in numbers]

    inputs = keras.Model(model.inputs[0], [block.input for block in chosen])(image[None], training=False)
    maps = []
    for block, x in zip(chosen, keras.tree.flatten(inputs), strict=True):
        _, attention = block.attention(block.attention_norm(x), return_attention_scores=True)
        heads = ops.convert_to_numpy(attention)[0]
        if head is not None and not 0 <= head < len(heads):
            raise ValueError(f"{block.name} has the heads 0 ... {len(heads) - 1}. Received: head={head}")
        attention = heads.mean(axis=0) if head is None else heads[head]
        maps.append(_over_image(attention, image.shape, tuple(x.shape[1:3]), block.attention.reduction, query))

    columns = min(len(maps) + 1, 5)
    figure, panels = _panels(len(maps) + 1, columns)
    picture = _picture(image)
    panels[0].imshow(picture)
    panels[0].set_title("image")
    for panel, block, seen in zip(panels[1:], chosen, maps, strict=True):
        panel.imshow(picture.mean(axis=-1), cmap="gray", vmin=0, vmax=1)
        # All maps cover the whole image, however coarse they are.
        extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
        panel.imshow(seen, cmap="inferno", alpha=0.6, vmin=0, vmax=max(seen.max(), 1e-12), extent=extent)
        panel.set_title(block.name)
    for panel in panels:
        panel.set_xticks([])
        panel.set_yticks([])
        if query is not None:
            panel.plot(query[1], query[0], "+", color="white", markersize=10)
    return figure


def latent_weights(model_or_layer: keras.Layer, bins: int = 101) -> "Figure":
    """Draws a histogram of the latent weights of each quantized kernel, with the thresholds of its quantizer.

    Of a quantizer that centers the kernel, the mean of each unit is subtracted: what is drawn is what it compares with
    the threshold, and how many weights are near a flip.

    Args:
        model_or_layer: A model, or one of its layers.
        bins: Bars of a histogram.

    Returns:
        A `matplotlib.figure.Figure` with a panel for each kernel.

    Raises:
        ValueError: There is no quantized kernel in it, or it is frozen.
        ImportError: matplotlib is missing.
    """
    layers = [
        layer
        for layer in {id(layer): layer for layer in model_or_layer._flatten_layers()}.values()
        if isinstance(layer, QuantizedKernel) and layer.kernel_quantizer is not None
    ]
    if not layers:
        raise ValueError(
            f"{model_or_layer.name!r} has no layer such as QuantDense with a kernel quantizer. A frozen model has no "
            "latent weights: pass the model as it is trained."
        )
    order = {id(weight): position for position, weight in enumerate(model_or_layer.weights)}
    layers.sort(key=lambda layer: order[id(layer.kernel)])
    figure, panels = _panels(len(layers), min(len(layers), 4), width=3.2)
    for panel, layer in zip(panels, layers, strict=True):
        kernel = ops.convert_to_numpy(layer.kernel)
        if getattr(layer.kernel_quantizer, "centered", False):
            kernel = kernel - kernel.mean(axis=tuple(range(kernel.ndim - 1)), keepdims=True)
        panel.hist(kernel.ravel(), bins=bins, color=_BLUE)
        for threshold in _thresholds(layer.kernel_quantizer, kernel):
            panel.axvline(threshold, color=_RED, linewidth=1)
        panel.set_title(layer.path.removesuffix("/dense"), fontsize=7)
        panel.tick_params(labelsize=7)
        panel.locator_params(axis="x", nbins=5)
        panel.set_yticks([])
    return figure


def quantizer(quantizer: QuantizerLike, limits: tuple[float, float] | None = None) -> "Figure":
    """Draws a quantizer's function and its gradient.

    Args:
        quantizer: Whatever `quantizers.get` takes. One that looks at a whole unit sees the drawn range as a unit.
        limits: Range of x: -2 ... 2 by default; for `ElasticBinarizer`, which takes probabilities, 0 ... 2 clips.

    Returns:
        A `matplotlib.figure.Figure` with two panels.

    Raises:
        ValueError: It is no quantizer, or `None`.
        ImportError: matplotlib is missing.
    """
    function = quantizers.get(quantizer)
    if function is None:
        raise ValueError("There is nothing to draw of None. Pass the name or object of a quantizer.")
    if limits is None:
        limits = (0, 2 * function.initial_clip) if isinstance(function, quantizers.ElasticBinarizer) else (-2, 2)
    x = np.linspace(limits[0], limits[1], 1001, dtype="float32")[:, None]
    value, gradient = _value_and_gradient(function, x)

    figure, panels = _panels(2, 2, width=3)
    for panel, y, label in zip(panels, (value, gradient), ("q(x)", "dq/dx"), strict=True):
        panel.plot(x[:, 0], y[:, 0], color=_BLUE)
        panel.set_xlabel("x")
        panel.set_title(label)
        panel.grid(alpha=0.3)
    return figure


def learning_curve(history: Mapping[str, Sequence[float]]) -> "Figure":
    """Draws the accuracy of each epoch.

    Args:
        history: Logs by name, such as `model.fit(...).history`, with `accuracy` and `val_accuracy`.

    Returns:
        A `matplotlib.figure.Figure` with one panel.

    Raises:
        ValueError: One of the two logs is missing.
        ImportError: matplotlib is missing.
    """
    if not {"accuracy", "val_accuracy"} <= history.keys():
        raise ValueError(f"The history must have accuracy and val_accuracy. Received: {', '.join(history)}")
    figure, (panel,) = _panels(1, 1, width=5)
    for name, label in (("accuracy", "training"), ("val_accuracy", "validation")):
        panel.plot(range(1, 1 + len(history[name])), history[name], label=label)
    panel.set(xlabel="epoch", ylabel="accuracy", title="Learning curve")
    panel.grid(alpha=0.3)
    panel.legend()
    return figure


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, class_names: Sequence[str]) -> "Figure":
    """Draws how many images of each class are predicted to be of each class, as shares of the class.

    Args:
        labels: True classes, `(images,)`.
        predictions: Predicted classes, `(images,)`.
        class_names: Names by class.

    Returns:
        A `matplotlib.figure.Figure` with one panel: rows are the true classes.

    Raises:
        ValueError: A label or prediction is the index of no name.
        ImportError: matplotlib is missing.
    """
    classes = len(class_names)
    cells = np.asarray([labels, predictions], np.int64)
    if cells.size and not 0 <= np.min(cells) <= np.max(cells) < classes:
        raise ValueError(f"There are {classes} class names. Received: classes from {np.min(cells)} to {np.max(cells)}")
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, tuple(cells), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(4.0, 0.5 * classes), 12.0)
    figure, (panel,) = _panels(1, 1, width=side)
    figure.set_figheight(side)
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    panel.set(xlabel="predicted", ylabel="true", title=f"Accuracy {np.trace(counts) / max(counts.sum(), 1):.2%}")
    if classes <= 30:  # more can't be read
        panel.set_xticks(range(classes), class_names, rotation=90)
        panel.set_yticks(range(classes), class_names)
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            panel.text(column, row, str(count), ha="center", va="center", color=color, fontsize=7)
    return figure


def _panels(count, columns, width=2.4):
    """Returns a figure and `count` axes on it, row by row."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("This needs matplotlib: pip install keras-binaryvit[examples]") from error
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, 2.6 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, 1 + number) for number in range(count)]


def _over_image(attention, image_shape, positions, reduction, query):
    """Returns the map of the attention `(queries, keys)` over an image: of one query or the mean of all."""
    height, width = positions
    # A class token stands before the patches, in a single column.
    token = width == 1 and attention.shape[0] == attention.shape[1] == height and _grid(height - 1, image_shape)
    if token:
        (height, width), attention = token, attention[:, 1:]
    if query is not None:
        row, column = query[0] * height // image_shape[0], query[1] * width // image_shape[1]
        seen = attention[row * width + column + (1 if token else 0)]
    else:
        seen = attention[0] if token else attention.mean(axis=0)
    return seen.reshape(height // reduction, width // reduction)


def _grid(patches, image_shape):
    """Returns the rows and columns of `patches` square patches of an image, `None` if it can't be cut into so many."""
    side = math.isqrt(image_shape[0] * image_shape[1] // patches) if patches else 0
    if not side or image_shape[0] % side or image_shape[1] % side:
        return None
    rows, columns = image_shape[0] // side, image_shape[1] // side
    return (rows, columns) if rows * columns == patches else None


def _picture(image):
    """Returns a normalized image as one that can be shown: `(height, width, 3)` in 0 ... 1."""
    image = image if image.shape[-1] == 3 else np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
    return (image - image.min()) / max(image.max() - image.min(), 1e-12)


def _thresholds(quantizer, kernel):
    """Returns the values between which the quantizer's output jumps, as far as they are known."""
    if isinstance(quantizer, quantizers.SteTern):
        twn = quantizer.ternary_weight_networks
        threshold = 0.7 * np.abs(kernel).mean() if twn else quantizer.threshold_value
        return (-threshold, threshold)
    return (0.0,) if quantizers.is_one_bit(quantizer) else ()


def _value_and_gradient(function, x):
    """Returns `function(x)` and the gradient of its sum, as NumPy arrays."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tensor = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            value = function(tensor)
        gradient = tape.gradient(value, tensor)
    elif backend == "jax":
        import jax

        value, backward = jax.vjp(function, ops.convert_to_tensor(x))
        (gradient,) = backward(ops.ones_like(value))
    else:
        import torch

        tensor = ops.convert_to_tensor(x).clone().requires_grad_()
        value = function(tensor)
        (gradient,) = torch.autograd.grad(value.sum(), tensor)
    return ops.convert_to_numpy(value), ops.convert_to_numpy(gradient)
