"""lower_runtime: the rules by which attention, feed-forward layers, pooling branches and patch merging become one
operator each. A layer for which there is none, for its quantizers or its shape, is lowered by the ordinary rules.
"""

import collections
from collections.abc import Callable

import numpy as np

from keras_binaryvit import layers
from keras_binaryvit.deploy import lower, runtime_layers
from keras_binaryvit.deploy.binary import obstacle, signs_and_scale
from keras_binaryvit.deploy.graph import Edge
from keras_binaryvit.deploy.lower import as_array, clip_of, inside, norm_affine

_MAX_RANK = 4
_MAX_REACH = 64  # of pooling, on each side


def _attention(lowering, layer, x):
    if not _can_fuse_attention(layer):
        return lower.RULES[type(layer)](lowering, layer, x)
    return _attention_node(lowering, layer, x, _attention_constants(layer), residual=0)


def _feed_forward(lowering, layer, x):
    if obstacle(layer.expand.dense) or not 2 <= 1 + len(x.shape) <= _MAX_RANK:
        return lower.RULES[type(layer)](lowering, layer, x)
    return _feed_forward_node(lowering, layer, [x], _feed_forward_constants(layer))


def _branches(lowering, layer, x):
    if any(1 not in window for window in layer.windows) or max(_reach(layer)) > _MAX_REACH:
        return lower.RULES[type(layer)](lowering, layer, x)
    return _branches_node(lowering, layer, x, _branches_constants(layer), residual=0)


def _block(lowering, layer, x):
    # The feed-forward layer has the same quantizers.
    if not _can_fuse_attention(layer.attention):
        return lower.RULES[type(layer)](lowering, layer, x)
    constants = _attention_constants(layer.attention)
    runtime_layers.SelfAttention.put_after(constants, lowering.call(layer.attention_affine, Edge(x.node)))
    runtime_layers.SelfAttention.put_before(constants, inside(lowering, layer.attention_norm, Edge(x.node)))
    with lowering.inside(layer.attention.name):
        y = _attention_node(lowering, layer.attention, x, constants, residual=1)

    residual = y
    if layer.use_pooling_branches:
        constants = _branches_constants(layer.branches)
        runtime_layers.PoolingBranches.put_before(constants, inside(lowering, layer.feed_forward_norm, y))
        with lowering.inside(layer.branches.name):
            residual = _branches_node(lowering, layer.branches, y, constants, residual=1)

    constants = _feed_forward_constants(layer.feed_forward)
    runtime_layers.FeedForward.put_after(constants, lowering.call(layer.feed_forward_affine, Edge(y.node)))
    h = inside(lowering, layer.feed_forward_norm, y)
    with lowering.inside(layer.feed_forward.name):
        return _feed_forward_node(lowering, layer.feed_forward, [h, residual], constants)


def _patch_merging(lowering, layer, x):
    if not layer.binary or obstacle(layer.convolution):
        return lower.RULES[type(layer)](lowering, layer, x)
    height, width, channels = x.shape
    kernel, constants, output_shift = _activated(layer.convolution, layer)
    constants |= {"kernel": kernel, "scale": np.ones(channels)}
    shape = (height // 2, width // 2, layer.embed_dim)
    x = inside(lowering, layer.input_norm, x)
    y = lowering.node(runtime_layers.PatchMerging, [x], shape, constants, units=layer.embed_dim)
    return lowering.add_constant(y.affine(shift=output_shift), as_array(layer.position_embedding))


# ---- which layers


def _can_fuse_attention(layer):
    # All its projections have the same quantizers.
    return layer.binary_probabilities and obstacle(layer.query.dense) is None


# ---- their constants


def _product(layer, norm):
    """Returns the kernel as +-1, and the factor and bias of what the norm makes of the number of differing bits."""
    kernel, factor = signs_and_scale(layer)
    scale, shift = norm_affine(norm)
    length = kernel.size // kernel.shape[-1]
    return kernel, {"multiplier": -2 * factor * scale, "bias": length * factor * scale + shift}


def _activated(product, layer):
    """Returns the kernel of a `product` within `layer`, the other constants of the layer, and the shift that is left
    for its readers."""
    kernel, constants = _product(product, layer.norm)
    activation = layer.activation
    constants["bias"] = constants["bias"] - as_array(activation.input_shift)
    constants |= {"threshold": as_array(layer.shift.shift), "slope": as_array(activation.slope)}
    return kernel, constants, as_array(activation.output_shift)


def _projection(layer):
    return _activated(layer.dense, layer)


def _attention_constants(layer):
    projections = {"query": layer.query, "key": layer.key, "value": layer.value, "output": layer.output_projection}
    if layer.reduction > 1:
        projections["reduced"] = layer.reduced
    kernels: dict[str, np.ndarray] = {}
    constants: dict[str, np.ndarray] = {}
    shifts: dict[str, np.ndarray] = {}
    for name, projection in projections.items():
        kernels[name], parts, shifts[name] = _projection(projection)
        constants |= {f"{name}/{part}": value for part, value in parts.items()}

    for name in ("key", "value"):
        _shift_projection(constants, name, shifts.get("reduced", 0.0))
    for name, shift in (("query", layer.query_shift), ("key", layer.key_shift), ("value", layer.value_shift)):
        constants[f"{name}_threshold"] = shifts[name] + as_array(shift.shift)
    clip = clip_of(layer)
    attended_scale, attended_shift = norm_affine(layer.context_norm)
    shortcuts = shifts["query"] + shifts["key"] + shifts["value"]
    activation = layer.context_activation
    _shift_projection(constants, "output", as_array(activation.output_shift))
    channels = len(shortcuts)
    return constants | {
        "kernels": np.stack(list(kernels.values())),
        "probability_threshold": np.array([clip / 2]),
        "scale": np.ones(channels),
        "context_scale": clip * attended_scale,
        "context_bias": attended_shift + shortcuts - as_array(activation.input_shift),
        "context_slope": as_array(activation.slope),
        "output_scale": np.ones(channels),
        "output_shift": shifts["output"],
    }


def _shift_projection(constants, name, shift):
    """Makes the constants of a projection those for inputs that come without `shift`."""
    for part in ("threshold", "bias"):
        constants[f"{name}/{part}"] = constants[f"{name}/{part}"] + shift


def _feed_forward_constants(layer):
    kernel_1, expand, hidden_shift = _projection(layer.expand)
    kernel_2, reduce, output_shift = _projection(layer.reduce)
    channels = len(output_shift)
    return {
        "kernel_1": kernel_1,
        "kernel_2": kernel_2,
        **{f"{part}_1": value for part, value in expand.items()},
        **{f"{part}_2": value for part, value in reduce.items()},
        "threshold_2": reduce["threshold"] + hidden_shift,
        "bias_2": reduce["bias"] + hidden_shift.reshape(channels, -1).mean(1),
        "scale": np.ones(channels),
        "output_scale": np.ones(channels),
        "output_shift": output_shift,
    }


def _branches_constants(layer):
    vertical, horizontal = _reach(layer)
    channels = layer.affines[0].scale.shape[0]
    names = ["shift", "bias", "center"]
    names += [f"below_{d}" for d in range(1, vertical + 1)] + [f"beside_{d}" for d in range(1, horizontal + 1)]
    constants = {"scale": np.ones(channels), **{name: np.zeros(channels) for name in names}}
    for (height, width), affine in zip(layer.windows, layer.affines, strict=True):
        constants["bias"] += as_array(affine.shift)
        weight = as_array(affine.scale) / (height * width)
        constants["center"] += weight
        for d in range(1, height // 2 + 1):
            constants[f"below_{d}"] += weight
        for d in range(1, width // 2 + 1):
            constants[f"beside_{d}"] += weight
    return constants


def _reach(layer):
    height, width = (max(sides) for sides in zip(*layer.windows, strict=True))
    return height // 2, width // 2


# ---- their nodes


def _attention_node(lowering, layer, x, constants, residual):
    options = {"heads": layer.num_heads, "reduction": layer.reduction, "residual": residual}
    return lowering.node(runtime_layers.SelfAttention, [x], x.shape, constants, **options)


def _feed_forward_node(lowering, layer, inputs, constants):
    options = {"expansion": layer.expansion, "residual": len(inputs) - 1}
    return lowering.node(runtime_layers.FeedForward, inputs, inputs[0].shape, constants, **options)


def _branches_node(lowering, layer, x, constants, residual):
    vertical, horizontal = _reach(layer)
    options = {"vertical": vertical, "horizontal": horizontal, "residual": residual}
    return lowering.node(runtime_layers.PoolingBranches, [x], x.shape, constants, **options)


_OPERATORS: dict[type, Callable] = {
    layers.BinaryFeedForward: _feed_forward,
    layers.BinarySelfAttention: _attention,
    layers.BinaryTransformerBlock: _block,
    layers.MultiBranchAveragePooling: _branches,
    layers.PatchMerging: _patch_merging,
}

# The ordinary rules behind them, with what is added to those.
RULES = collections.ChainMap(_OPERATORS, lower.RULES)
