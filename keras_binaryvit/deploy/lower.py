"""lower: a training model as a graph of inference operations, with per-channel affines on the edges."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_binaryvit import layers, quantizers
from keras_binaryvit.deploy import lce_layers
from keras_binaryvit.deploy.graph import SEPARATOR, Edge, Graph, Input, Node, Operation, Pick, Slot
from keras_binaryvit.models.image_classifier import ImageClassifier
from keras_binaryvit.typing import Shape

# Quantisers whose values are those of a sign, and no other.
SIGNS = (quantizers.SteSign, quantizers.ApproxSign, quantizers.SwishSign)
_IDENTITIES = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.ActivityRegularization,
    keras.layers.Identity,
)


def lower(model: keras.Model, rules: dict[type, Callable] | None = None) -> Graph:
    """Returns the graph of `model`, a functional or Sequential model.

    Our layers and the ordinary ones that affines fold into become inference operations; any other layer or operation
    stays as it is.

    Args:
        model: The model.
        rules: The rule for each type of layer; `RULES` if `None`.

    Raises:
        ValueError: `model` has no graph of layers, or a layer can't be frozen; the message names it.
    """
    lowering = Lowering(RULES if rules is None else rules)
    graph = functional_graph(model)
    if graph is None:
        raise ValueError(
            f"Only functional and Sequential models can be frozen; {model.name!r} is a {type(model).__name__} "
            "without a graph of layers."
        )
    inputs = []
    for tensor in graph.inputs:
        options = {"shape": tensor.shape[1:], "dtype": tensor.dtype, "name": tensor.name}
        inputs.append(Edge(lowering.add(Node(Input, [], tensor.shape[1:], tensor.name, options=options))))
    outputs = [edge.affine() for edge in keras.tree.flatten(lowering.run(graph, inputs))]
    return Graph(lowering.nodes, outputs, _numbered(graph.input), _numbered(graph.output))


class Lowering:
    """The nodes so far, the rules, and the path of the layer that is being lowered."""

    def __init__(self, rules: dict[type, Callable]):
        self.nodes: list[Node] = []
        self.rules = rules
        self._path: list[str] = []

    def add(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def node(
        self,
        kind: type,
        inputs: list[Edge],
        shape: Shape,
        constants: Mapping[str, ArrayLike] | None = None,
        **options: Any,
    ) -> Edge:
        name = SEPARATOR.join([*self._path, kind.__name__.lower()])
        weights = {key: np.asarray(value, np.float64) for key, value in (constants or {}).items()}
        # An edge of its own for each reader: folding changes them one by one.
        edges = [edge.affine() for edge in inputs]
        return Edge(self.add(Node(kind, edges, tuple(shape), name, weights, options)))

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        self._path.append(name)
        yield
        self._path.pop()

    def run(self, graph: keras.Function, inputs: Any) -> Any:
        """Returns what the functional model `graph` gives for the edges `inputs`."""
        return graph._run_through_graph(inputs, call_fn=self.call)

    def call(self, operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        """Returns the edges of `operation(*args, **kwargs)`, with edges for tensors."""
        edges = _edges((args, kwargs))
        if isinstance(operation, _IDENTITIES):
            return edges[0]
        with self.inside(operation.name):
            if isinstance(operation, keras.Model) and (graph := functional_graph(operation)):
                return self.run(graph, edges)
            rule = self.rules.get(type(operation))
            if rule and len(args) == 1 and len(edges) == len(keras.tree.flatten(args[0])):
                return rule(self, operation, args[0])
            return self.operation(operation, *args, **kwargs)

    def operation(self, operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        """Adds an operation that is called as it is."""
        edges = _edges((args, kwargs))
        slots = iter(range(len(edges)))

        def replaced(make):
            return keras.tree.map_structure(lambda x: make(x) if isinstance(x, Edge) else x, (args, kwargs))

        symbolic_args, symbolic_kwargs = replaced(lambda edge: keras.KerasTensor((None, *edge.shape)))
        outputs = operation.compute_output_spec(*symbolic_args, **symbolic_kwargs)
        flat = keras.tree.flatten(outputs)
        call = replaced(lambda edge: Slot(next(slots)))
        whole = self.node(Operation, edges, flat[0].shape[1:], operation=operation, call=call)
        whole.node.name = SEPARATOR.join(self._path)
        if isinstance(outputs, keras.KerasTensor):
            return whole
        picks = [self.node(Pick, [whole], spec.shape[1:], index=index) for index, spec in enumerate(flat)]
        return keras.tree.pack_sequence_as(outputs, picks)

    # Pieces that several rules share.

    def sign(self, quantizer: Any, x: Edge) -> Edge:
        if quantizer is None:
            return x
        if isinstance(quantizer, SIGNS):
            return self.node(lce_layers.Sign, [x], x.shape)
        return self.node(lce_layers.Quantize, [x], x.shape, quantizer=quantizer)

    def float_sign(self, quantizer: Any, x: Edge) -> Edge:
        """As `sign`, for a product that isn't binary in LCE."""
        if not isinstance(quantizer, SIGNS):
            return self.sign(quantizer, x)
        constants = {"kernel": np.ones(x.shape[-1]), "bias": np.zeros(x.shape[-1])}
        return self.node(lce_layers.FloatSign, [x], x.shape, constants)

    def add_constant(self, x: Edge, constant: np.ndarray) -> Edge:
        return self.node(
            lce_layers.AddConstant, [x], x.shape, {"constant": constant}, constant_shape=np.shape(constant)
        )

    def product(self, layer: keras.Layer, x: Edge, shape: Shape, **options: Any) -> Edge:
        """The sign of `x` times the layer's kernel, `(height, width, in, out)`; `x` is a map."""
        x = self.sign(layer.input_quantizer, x)
        if layer.is_binary:
            values, scale = signs_and_scale(layer)
        else:
            kernel, factors = layer.quantized_kernel()
            values = as_array(kernel)
            scale = np.ones(values.shape[-1]) if factors is None else as_array(factors)
        filters = values.shape[-1]
        constants = {
            "kernel": values.reshape((1,) * (4 - values.ndim) + values.shape),
            "scale": scale,
            "bias": np.zeros(filters),
        }
        return self.node(
            lce_layers.Convolution, [x], shape, constants, filters=filters, binary=layer.is_binary, **options
        )

    def biased_and_activated(self, layer: keras.Layer, x: Edge) -> Edge:
        if layer.use_bias:
            x = x.affine(shift=as_array(layer.bias))
        if layer.activation in (None, keras.activations.linear):
            return x
        return self.operation(keras.layers.Activation(layer.activation), x)


def functional_graph(model: keras.Model) -> keras.Model | None:
    """Returns the layers of a functional or Sequential model as a functional model, `None` for any other."""
    try:
        if isinstance(model, keras.Sequential):
            return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        graph = keras.Model(model.input, model.output, name=model.name)
    except (AttributeError, ValueError):
        return None
    # An `ImageClassifier` only normalizes integer images before.
    return graph if type(model).call in (type(graph).call, ImageClassifier.call) else None


def signs_and_scale(layer: layers.QuantDense | layers.QuantConv2D) -> tuple[np.ndarray, np.ndarray]:
    """Returns the layer's kernel as +-1 and a factor for each unit.

    Raises:
        ValueError: Its quantised values aren't +-one magnitude for each unit.
    """
    kernel, factor = layer.quantized_kernel()
    values, scale = as_array(kernel), 1.0 if factor is None else as_array(factor)
    magnitudes = np.abs(values).reshape(-1, values.shape[-1])
    if not np.all(magnitudes == magnitudes[0]) or not np.all(magnitudes[0] > 0):
        raise ValueError(
            f"The layer {layer.path!r} can't be frozen: its kernel quantiser {layer.kernel_quantizer!r} gives other "
            "values than +-one magnitude for each unit."
        )
    return np.where(values >= 0, 1.0, -1.0), magnitudes[0] * scale


def _numbered(structure):
    return keras.tree.pack_sequence_as(structure, list(range(len(keras.tree.flatten(structure)))))


def _edges(structure):
    return [x for x in keras.tree.flatten(structure) if isinstance(x, Edge)]


def as_array(variable: Any) -> np.ndarray:
    """Returns the values of a variable or tensor in float64."""
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


# A rule for each layer: (lowering, layer, input edge or edges) -> output edge.


def _batch_norm(lowering, layer, x):
    if layer.axis not in (-1, len(x.shape)):
        return lowering.operation(layer, x)
    scale = 1 / np.sqrt(as_array(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale = scale * as_array(layer.gamma)
    shift = -as_array(layer.moving_mean) * scale
    if layer.center:
        shift = shift + as_array(layer.beta)
    return x.affine(scale, shift)


def _shift(lowering, layer, x):
    return x.affine(shift=as_array(layer.shift))


def _affine(lowering, layer, x):
    return x.affine(as_array(layer.scale), as_array(layer.shift))


def _prelu(lowering, x, slope):
    return lowering.node(lce_layers.PReLU, [x], x.shape, {"negative_slope": -slope})


def _rprelu(lowering, layer, x):
    x = _prelu(lowering, x.affine(shift=-as_array(layer.input_shift)), as_array(layer.slope))
    return x.affine(shift=as_array(layer.output_shift))


def _keras_prelu(lowering, layer, x):
    slope = as_array(layer.alpha)
    if slope.shape[-1] != x.shape[-1] or slope.size != x.shape[-1]:  # not one for each channel
        return lowering.operation(layer, x)
    return _prelu(lowering, x, slope.reshape(-1))


def _add(lowering, layer, inputs):
    if not isinstance(inputs, list | tuple) or any(x.shape != inputs[0].shape for x in inputs):
        return lowering.operation(layer, inputs)
    return lowering.node(lce_layers.Add, inputs, inputs[0].shape)


def _dense(lowering, layer, x):
    constants = {"kernel": as_array(layer.kernel), "bias": np.zeros(layer.units)}
    y = lowering.node(lce_layers.Dense, [x], (*x.shape[:-1], layer.units), constants, units=layer.units)
    return lowering.biased_and_activated(layer, y)


def _quant_dense(lowering, layer, x):
    *positions, channels = x.shape
    if len(positions) == 2:
        y = lowering.product(layer, x, (*positions, layer.units))
    else:  # LCE's only binary product is a convolution of maps
        y = lowering.operation(keras.layers.Reshape((-1 if positions else 1, 1, channels)), x)
        y = lowering.product(layer, y, (*y.shape[:-1], layer.units))
        y = lowering.biased_and_activated(layer, y)
        return lowering.operation(keras.layers.Reshape((*positions, layer.units)), y)
    return lowering.biased_and_activated(layer, y)


def _convolution_options(layer):
    if layer.data_format != "channels_last":
        raise ValueError(
            f"The layer {layer.path!r} can't be frozen: it has data_format={layer.data_format!r}, and LCE and TFLite "
            "convolve channels-last maps only."
        )
    return {
        "kernel_size": layer.kernel_size,
        "strides": layer.strides,
        "padding": layer.padding,
        "dilation_rate": layer.dilation_rate,
        "groups": layer.groups,
    }


def _conv(lowering, layer, x):
    filters = layer.filters
    constants = {"kernel": as_array(layer.kernel), "scale": np.ones(filters), "bias": np.zeros(filters)}
    shape = layer.compute_output_shape((None, *x.shape))[1:]
    y = lowering.node(lce_layers.Convolution, [x], shape, constants, filters=filters, **_convolution_options(layer))
    return lowering.biased_and_activated(layer, y)


def _quant_conv(lowering, layer, x):
    shape = layer.compute_output_shape((None, *x.shape))[1:]
    options = {**_convolution_options(layer), "pad_values": layer.pad_values}
    return lowering.biased_and_activated(layer, lowering.product(layer, x, shape, **options))


def _global_pooling(lowering, layer, x):
    if layer.keepdims or layer.data_format != "channels_last":
        return lowering.operation(layer, x)
    return lowering.node(lce_layers.GlobalAveragePooling, [x], x.shape[-1:])


def _average_pool(lowering, x, size):
    height, width, channels = x.shape
    return lowering.node(lce_layers.AveragePooling, [x], (height // size, width // size, channels), size=size)


def _shortcut(lowering, x, units):
    """What BinaryProjection adds to its product: whole copies of x, or means of adjacent channels."""
    *positions, channels = x.shape
    if units > channels:
        return lowering.node(lce_layers.Tile, [x], (*positions, units), copies=units // channels)
    if units < channels:
        return lowering.node(lce_layers.GroupMean, [x], (*positions, units), size=channels // units)
    return x


def _projection(lowering, layer, x):
    y = _quant_dense(lowering, layer.dense, _shift(lowering, layer.shift, x))
    y = _batch_norm(lowering, layer.norm, y)
    total = lowering.node(lce_layers.Add, [y, _shortcut(lowering, x, layer.units)], y.shape)
    return _rprelu(lowering, layer.activation, total)


def inside(lowering: Lowering, layer: keras.layers.Layer, x: Edge) -> Edge:
    """Returns what a layer within a composite one gives for `x`."""
    with lowering.inside(layer.name):
        return lowering.rules[type(layer)](lowering, layer, x)


def _feed_forward(lowering, layer, x):
    return inside(lowering, layer.reduce, inside(lowering, layer.expand, x))


def clip_of(layer: layers.BinarySelfAttention) -> float:
    """Returns the value of the attention's binary probabilities that aren't 0."""
    return max(float(as_array(layer.binarizer.clip)), layer.binarizer.smallest_clip)


def _attention(lowering, layer, x):
    if not layer.binary_probabilities:
        raise ValueError(
            f"The layer {layer.path!r} has real attention probabilities; only an attention with "
            "binary_probabilities=True can be frozen."
        )
    keys_from = x
    if layer.reduction > 1:
        keys_from = inside(lowering, layer.reduced, _average_pool(lowering, x, layer.reduction))
    query = inside(lowering, layer.query, x)
    key, value = inside(lowering, layer.key, keys_from), inside(lowering, layer.value, keys_from)

    shifts = (layer.query_shift, layer.key_shift, layer.value_shift)
    signs = []
    for projected, shift in zip((query, key, value), shifts, strict=True):
        with lowering.inside(shift.name):
            signs.append(lowering.float_sign(layer.input_quantizer, _shift(lowering, shift, projected)))
    clip = clip_of(layer)
    constants = {"threshold": clip / 2}
    attended = lowering.node(lce_layers.Attention, signs, query.shape, constants, num_heads=layer.num_heads)
    attended = _batch_norm(lowering, layer.context_norm, attended.affine(clip / 6))

    shortcuts = [key, value]
    if layer.reduction > 1:
        reduced = lowering.node(lce_layers.Add, shortcuts, key.shape)
        shortcuts = [lowering.node(lce_layers.Upsampling, [reduced], query.shape, size=layer.reduction)]
    context = lowering.node(lce_layers.Add, [attended, query, *shortcuts], query.shape)
    return inside(lowering, layer.output_projection, _rprelu(lowering, layer.context_activation, context))


def _branches(lowering, layer, x):
    # All windows in one kernel: a cross. Zeros around the map count in the mean, as a convolution counts them.
    height, width = (max(sizes) for sizes in zip(*layer.windows, strict=True))
    kernel = np.zeros((height, width, x.shape[-1], 1))
    bias: np.ndarray | float = 0.0
    for (h, w), affine in zip(layer.windows, layer.affines, strict=True):
        top, left = (height - h) // 2, (width - w) // 2
        kernel[top : top + h, left : left + w, :, 0] += as_array(affine.scale) / (h * w)
        bias = bias + as_array(affine.shift)
    y = lowering.node(
        lce_layers.DepthwiseConvolution,
        [x],
        x.shape,
        {"kernel": kernel, "bias": np.zeros(x.shape[-1])},
        kernel_size=(height, width),
    )
    return y.affine(shift=bias)


def _block(lowering, layer, x):
    h = inside(lowering, layer.attention_norm, x)
    h = lowering.call(layer.attention_affine, inside(lowering, layer.attention, h))
    x = lowering.node(lce_layers.Add, [x, h], x.shape)
    h = inside(lowering, layer.feed_forward_norm, x)
    terms = [x, lowering.call(layer.feed_forward_affine, inside(lowering, layer.feed_forward, h))]
    if layer.has_branches:
        terms.append(inside(lowering, layer.branches, h))
    return lowering.node(lce_layers.Add, terms, x.shape)


def _patch_embedding(lowering, layer, x):
    x = inside(lowering, layer.convolution, x)
    if layer.has_norm:
        x = inside(lowering, layer.norm, x)
    constant = as_array(layer.position_embedding)
    if layer.has_class_token:
        height, width, channels = x.shape
        x = lowering.operation(keras.layers.Reshape((height * width, 1, channels)), x)
        x = lowering.operation(keras.layers.ZeroPadding2D(((1, 0), (0, 0)), data_format="channels_last"), x)
        constant[0] += as_array(layer.class_token)[0]
    return lowering.add_constant(x, constant)


def _patch_merging(lowering, layer, x):
    x = inside(lowering, layer.input_norm, x)
    y = _shift(lowering, layer.shift, x) if layer.binary else x
    y = inside(lowering, layer.norm, inside(lowering, layer.convolution, y))
    if layer.binary:
        pooled = _shortcut(lowering, _average_pool(lowering, x, 2), layer.embed_dim)
        y = _rprelu(lowering, layer.activation, lowering.node(lce_layers.Add, [y, pooled], y.shape))
    return lowering.add_constant(y, as_array(layer.position_embedding))


RULES: dict[type, Callable] = {
    keras.layers.Add: _add,
    keras.layers.BatchNormalization: _batch_norm,
    keras.layers.Conv2D: _conv,
    keras.layers.Dense: _dense,
    keras.layers.GlobalAveragePooling2D: _global_pooling,
    keras.layers.PReLU: _keras_prelu,
    layers.BatchNorm: _batch_norm,
    layers.BinaryFeedForward: _feed_forward,
    layers.BinaryProjection: _projection,
    layers.BinarySelfAttention: _attention,
    layers.BinaryTransformerBlock: _block,
    layers.MultiBranchAveragePooling: _branches,
    layers.PatchEmbedding: _patch_embedding,
    layers.PatchMerging: _patch_merging,
    layers.QuantConv2D: _quant_conv,
    layers.QuantDense: _quant_dense,
    layers.ResidualAffine: _affine,
    layers.RPReLU: _rprelu,
    layers.Shift: _shift,
}
