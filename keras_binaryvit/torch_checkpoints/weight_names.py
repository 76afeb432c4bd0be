"""The authors' PyTorch parameter names, and how each of their arrays is laid out in our variables."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import keras
import numpy as np

from keras_binaryvit.models import BinaryViT, DeiT
from keras_binaryvit.torch_checkpoints.state_dicts import model_entries


class Parameter(NamedTuple):
    """A variable of a model and its layout in the authors' code.

    Attributes:
        variable: Ours.
        to_torch: Turns an array in the variable's layout (its value or its gradient) into the authors'.
        from_torch: The reverse.
        torch_shape: Shape of the authors' array.
    """

    variable: keras.Variable
    to_torch: Callable[[np.ndarray], np.ndarray]
    from_torch: Callable[[np.ndarray], np.ndarray]
    torch_shape: tuple[int, ...]


def _parameter(variable, to_torch=None, from_torch=None):
    def identity(array):
        return array

    to_torch, from_torch = to_torch or identity, from_torch or identity
    return Parameter(variable, to_torch, from_torch, to_torch(np.empty(variable.shape, np.bool_)).shape)


def _linear(variable):  # ours (in, out), theirs (out, in)
    return _parameter(variable, np.transpose, np.transpose)


def _conv(variable):  # ours (height, width, in, out), theirs (out, in, height, width)
    return _parameter(variable, lambda a: np.transpose(a, (3, 2, 0, 1)), lambda a: np.transpose(a, (2, 3, 1, 0)))


def _reshaped(variable, torch_shape):
    return _parameter(variable, lambda a: np.reshape(a, torch_shape), lambda a: np.reshape(a, variable.shape))


def _position(variable):  # ours (height, width, channels), theirs (1, positions, channels)
    return _reshaped(variable, (1, -1, variable.shape[-1]))


def _norm(prefix, layer):
    yield f"{prefix}.weight", _parameter(layer.gamma)
    yield f"{prefix}.bias", _parameter(layer.beta)
    yield f"{prefix}.running_mean", _parameter(layer.moving_mean)
    yield f"{prefix}.running_var", _parameter(layer.moving_variance)


def _rprelu(prefix, layer):
    yield f"{prefix}.move1", _parameter(layer.input_shift)
    yield f"{prefix}.move2", _parameter(layer.output_shift)
    yield f"{prefix}.prelu.weight", _parameter(layer.slope)


def _affine(prefix, layer):
    yield f"{prefix}.alpha", _parameter(layer.scale)
    yield f"{prefix}.move", _parameter(layer.shift)


def _projection(layer, shift, dense, norm, activation):
    yield shift, _parameter(layer.shift.shift)
    yield f"{dense}.weight", _linear(layer.dense.kernel)
    yield from _norm(norm, layer.norm)
    yield from _rprelu(activation, layer.activation)


def _attention(prefix, layer):
    projections = {"q": ("query", layer.query), "k": ("key", layer.key), "v": ("value", layer.value)}
    for letter, (name, projection) in projections.items():
        yield from _projection(
            projection,
            f"{prefix}.move{letter}",
            f"{prefix}.{name}",
            f"{prefix}.norm{letter}",
            f"{prefix}.rprelu{letter}",
        )
    if layer.reduction > 1:
        yield from _projection(
            layer.reduced, f"{prefix}.mover", f"{prefix}.reduction", f"{prefix}.norm_r", f"{prefix}.rprelur"
        )
    yield f"{prefix}.moveq2", _parameter(layer.query_shift.shift)
    yield f"{prefix}.movek2", _parameter(layer.key_shift.shift)
    yield f"{prefix}.movev2", _parameter(layer.value_shift.shift)
    yield f"{prefix}.att_prob_clip", _parameter(layer.binarizer.clip)
    yield from _norm(f"{prefix}.norm_context", layer.context_norm)
    yield from _rprelu(f"{prefix}.rprelu_context", layer.context_activation)


def _block(prefix, block):
    yield from _attention(f"{prefix}.attention.attention", block.attention)
    for part, layer in (
        ("attention.output", block.attention.output_projection),
        ("intermediate", block.feed_forward.expand),
        ("output", block.feed_forward.reduce),
    ):
        part = f"{prefix}.{part}"
        yield from _projection(layer, f"{part}.move", f"{part}.dense", f"{part}.norm", f"{part}.rprelu")
    yield from _norm(f"{prefix}.layernorm_before", block.attention_norm)
    yield from _norm(f"{prefix}.layernorm_after", block.feed_forward_norm)
    if block.use_affine:
        yield from _affine(f"{prefix}.attention.output.layerscale", block.attention_affine)
        yield from _affine(f"{prefix}.output.layerscale", block.feed_forward_affine)
    if block.use_pooling_branches:
        for (height, width), affine in zip(block.branches.windows, block.branches.affines, strict=True):
            branch = f"h{height}" if width == 1 else f"w{width}"
            yield from _affine(f"{prefix}.layerscale_{branch}", affine)


def _merging(prefix, layer):
    yield from _norm(f"{prefix}.norm0", layer.input_norm)
    yield f"{prefix}.proj.weight", _conv(layer.convolution.kernel)
    yield from _norm(f"{prefix}.norm", layer.norm)
    yield f"{prefix}.position_embeddings", _position(layer.position_embedding)
    if layer.binary:
        yield f"{prefix}.move", _reshaped(layer.shift.shift, (1, -1, 1, 1))
        yield from _rprelu(f"{prefix}.rprelu", layer.activation)


def _embedding(layer):
    prefix = "vit.embeddings"
    yield f"{prefix}.position_embeddings", _position(layer.position_embedding)
    yield f"{prefix}.patch_embeddings.projection.weight", _conv(layer.convolution.kernel)
    yield f"{prefix}.patch_embeddings.projection.bias", _parameter(layer.convolution.bias)
    if layer.use_norm:
        yield from _norm(f"{prefix}.norm", layer.norm)
    if layer.use_class_token:
        yield f"{prefix}.cls_token", _parameter(layer.class_token)


def _head(layer):
    yield "classifier.weight", _linear(layer.kernel)
    yield "classifier.bias", _parameter(layer.bias)


def _binary_model(model, depths):
    yield from _embedding(model.get_layer("patch_embedding"))
    for block in range(sum(depths)):
        yield from _block(f"vit.encoder.layer.{block}", model.get_layer(f"block_{block}"))
    for stage in range(1, len(depths)):
        yield from _merging(f"vit.encoder.patch_embed{stage}", model.get_layer(f"patch_merging_{stage}"))
    yield from _norm("vit.layernorm", model.get_layer("norm"))
    yield from _head(model.get_layer("head"))


def _dense(prefix, layer, inputs):
    # Attention's kernels have an axis of heads, (in, heads, head_dim) or (heads, head_dim, out).
    kernel = layer.kernel
    yield (
        f"{prefix}.weight",
        _parameter(
            kernel,
            lambda a: np.transpose(np.reshape(a, (inputs, -1))),
            lambda a: np.reshape(np.transpose(a), kernel.shape),
        ),
    )
    yield f"{prefix}.bias", _reshaped(layer.bias, (-1,))


def _layer_norm(prefix, layer):
    yield f"{prefix}.weight", _parameter(layer.gamma)
    yield f"{prefix}.bias", _parameter(layer.beta)


def _deit(model):
    channels = model.embed_dim
    yield from _embedding(model.get_layer("patch_embedding"))
    for block in range(model.depth):
        ours, theirs = f"block_{block}", f"vit.encoder.layer.{block}"
        attention = model.get_layer(f"{ours}_attention")
        yield from _layer_norm(f"{theirs}.layernorm_before", model.get_layer(f"{ours}_attention_norm"))
        yield from _dense(f"{theirs}.attention.attention.query", attention.query_dense, channels)
        yield from _dense(f"{theirs}.attention.attention.key", attention.key_dense, channels)
        yield from _dense(f"{theirs}.attention.attention.value", attention.value_dense, channels)
        yield from _dense(f"{theirs}.attention.output.dense", attention.output_dense, channels)
        yield from _layer_norm(f"{theirs}.layernorm_after", model.get_layer(f"{ours}_feed_forward_norm"))
        yield from _dense(f"{theirs}.intermediate.dense", model.get_layer(f"{ours}_expand"), channels)
        yield from _dense(f"{theirs}.output.dense", model.get_layer(f"{ours}_reduce"), channels * model.mlp_ratio)
    yield from _layer_norm("vit.layernorm", model.get_layer("norm"))
    yield from _head(model.get_layer("head"))


def torch_parameters(model: keras.Model) -> dict[str, Parameter]:
    """Returns every variable of `model`, trainable or running statistic, by the authors' name.

    Raises:
        TypeError: `model` is neither a `BinaryViT` nor a `DeiT`.
        ValueError: It has variables that the authors' code hasn't, such as those of `stem="convolutions"`.
    """
    if isinstance(model, BinaryViT):
        parameters = dict(_binary_model(model, model.depths))
    elif isinstance(model, DeiT):
        parameters = dict(_deit(model))
    else:
        raise TypeError(f"The authors' names are known for BinaryViT and DeiT. Received: {type(model).__name__}")
    named = {id(parameter.variable) for parameter in parameters.values()}
    if others := [variable.path for variable in model.weights if id(variable) not in named]:
        raise ValueError(f"The authors' code has no counterpart of these variables of {model.name!r}: {others}")
    return parameters


def load_torch_state_dict(model: keras.Model, state: Mapping[str, np.ndarray]) -> None:
    """Sets the variables of `model` from the authors' state dict.

    Args:
        model: A `BinaryViT` or `DeiT` of the same architecture.
        state: The authors' names with NumPy arrays in their layout, as `model_entries` selects them.
            `num_batches_tracked` is ignored.

    Raises:
        TypeError: As `torch_parameters`.
        ValueError: Names are missing or left over, or arrays have another shape or values that aren't finite; all of
            them are listed, and the model is unchanged.
    """
    parameters = torch_parameters(model)
    entries = model_entries(state).items()
    state = {name: np.asarray(array) for name, array in entries if not name.endswith("num_batches_tracked")}
    problems = [f"missing: {name} {parameters[name].torch_shape}" for name in parameters if name not in state]
    problems += [f"unexpected: {name} {state[name].shape}" for name in state if name not in parameters]
    for name in parameters.keys() & state.keys():
        expected, array = parameters[name].torch_shape, state[name]
        if array.shape != expected:
            problems.append(f"shape: {name} is {array.shape}, the model needs {expected}")
        elif not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
            problems.append(f"values: {name} of dtype {array.dtype} holds values that are not finite numbers")
    if problems:
        raise ValueError(
            f"The checkpoint doesn't fit the model {model.name!r} ({len(problems)} problems):\n  "
            + "\n  ".join(sorted(problems))
        )
    for name, parameter in parameters.items():
        parameter.variable.assign(parameter.from_torch(state[name]))


def to_torch_state_dict(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the variables of `model` under the authors' names and in their layout, without `num_batches_tracked`."""
    return {
        name: parameter.to_torch(keras.ops.convert_to_numpy(parameter.variable))
        for name, parameter in torch_parameters(model).items()
    }
