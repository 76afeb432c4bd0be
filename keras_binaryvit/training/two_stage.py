"""Two stages of training: real kernels under binary activations first, then binary kernels too."""

import itertools

import keras

from keras_binaryvit.layers.quantized import QuantizedKernel


def with_full_precision_kernels(model: keras.Model) -> keras.Model:
    """Returns a copy of `model`, weights included, that multiplies by its latent kernels as they are.

    Activations and attention probabilities stay binary. Train the copy, give its weights to the model with
    `copy_weights`, and train that one:

    ```python
    first = with_full_precision_kernels(model)
    first.fit(...)
    copy_weights(first, model)
    model.fit(...)
    ```

    Args:
        model: A `BinaryViT`, or any other model of our layers that `get_config` describes.

    Raises:
        ValueError: No layer of the model has a kernel quantizer, or the model is frozen.

    Source: Liu et al. (ReActNet), arXiv 2003.03488, section 5.1; Martinez et al., arXiv 2003.11535, section 4.1.
    """
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, QuantizedKernel)]
    quantized = [layer for layer in layers if layer.kernel_quantizer is not None]
    if not quantized:
        raise ValueError(
            f"The model {model.name!r} has no latent kernels: no layer has a kernel_quantizer, or the model is frozen."
        )
    copy = type(model).from_config(_without_kernel_quantizers(model.get_config()))
    copy_weights(model, copy)
    return copy


def _without_kernel_quantizers(config):
    """Returns `config` with None for all kernel quantizers, at any depth: layers stand in their model's."""
    if isinstance(config, dict):
        removed = ("kernel_quantizer", "conv_kernel_quantizer", "depthwise_quantizer")
        return {key: None if key in removed else _without_kernel_quantizers(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_without_kernel_quantizers(entry) for entry in config)
    return config


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Gives `target` all weights of `source`, statistics of the norms included.

    Raises:
        ValueError: The models differ in the names or shapes of their weights; nothing was copied.
    """
    pairs = list(itertools.zip_longest(source.weights, target.weights))
    different = [pair for pair in pairs if len({_signature(weight) for weight in pair}) > 1]
    if different:
        shown = "".join(f"\n  {_described(here)} - {_described(there)}" for here, there in different[:10])
        raise ValueError(
            f"The models {source.name!r} and {target.name!r} differ in {len(different)} of {len(pairs)} weights, and "
            f"nothing was copied. The first are{shown}"
        )
    for here, there in pairs:
        there.assign(here)


def _signature(weight):
    # Without the path: that of a nested model's weights depends on where it was built first.
    return None if weight is None else (weight.name, tuple(weight.shape))


def _described(weight):
    return "none" if weight is None else f"{weight.path} {tuple(weight.shape)}"
