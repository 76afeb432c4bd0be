"""lower: a training model as a graph of inference operations, with per-channel affines on the edges."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_binaryvit import layers
from keras_binaryvit.deploy import lce_layers
from keras_binaryvit.deploy.binary import is_sign, obstacle, signs_and_scale
from keras_binaryvit.deploy.elementary import rewritten
from keras_binaryvit.deploy.graph import (
    SEPARATOR,
    ConversionError,
    Edge,
    Graph,
    Inherited,
    Input,
    Node,
    Operation,
    Pick,
    Slot,
    functional_graph,
    nested_graph,
    opened,
    outside_training,
    subclassed_graph,
)
from keras_binaryvit.layers.quantized import PaddedKernel, QuantizedKernel
from keras_binaryvit.models.deit import exact_gelu
from keras_binaryvit.typing import Shape

_IDENTITIES = """
    Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout GaussianDropout GaussianNoise
    ActivityRegularization Identity
"""


def lower(model: keras.Model, rules: Mapping[type, Callable]) -> Graph:
    """Returns the graph of `model`.

    Our layers and the ordinary ones that affines fold into become inference operations. Layers of the user's own are
    opened; any other layer or operation stays as it is.

    Raises:
        ConversionError: A layer can't be frozen; the message names it.
    """
    lowering = Lowering(rules)
    graph = graph_of(model)
    inputs = [lowering.input(tensor.name, tensor) for tensor in graph.inputs]
    outputs = [edge.affine() for edge in keras.tree.flatten(lowering.run(graph, inputs))]
    return Graph(lowering.nodes, outputs, graph.input, graph.output)


def graph_of(model: keras.Model) -> keras.Model:
    """Returns the layers of any model as a functional model.

    Raises:
        ConversionError: Its `call` can't be followed.
    """
    return functional_graph(model) or subclassed_graph(model)


class Lowering:
    """The nodes so far, the rules, and the path of the layer that is being lowered."""

    def __init__(self, rules: Mapping[type, Callable]):
        self.nodes: list[Node] = []
        self.rules = rules
        self._path: list[str] = []

    def add(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def input(self, name: str, tensor: Any) -> Edge:
        """Adds an input like `tensor`; one of real numbers is float32."""
        dtype = _float32_if_real(tensor.dtype)
        options = {"shape": tuple(tensor.shape[1:]), "dtype": dtype, "name": name}
        return Edge(self.add(Node(Input, [], options["shape"], name, options=options, dtype=dtype)))

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

    def run(self, graph: keras.Model, inputs: Any) -> Any:
        """Returns what the functional model `graph` gives for the edges `inputs`."""
        return graph._run_through_graph(inputs, call_fn=self.call)

    def call(self, operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        """Returns the edges of `operation(*args, **kwargs)`, with edges for tensors."""
        with self.inside(operation.name):
            edges = _edges((args, kwargs))
            if graph := nested_graph(operation, [edge.node.dtype for edge in edges]):
                return self.run(graph, edges)
            if isinstance(operation, Inherited):
                return self.rules[operation.kind](self, operation.layer, *args)
            if not isinstance(operation, keras.Layer):
                rule = _OPERATIONS.get(type(operation).__name__) if _is_keras(type(operation)) else None
                result = rule(self, operation, *args, **kwargs) if rule else None
            else:
                given = [x for x in (*args, *kwargs.values()) if x is not None and x is not False]
                rule = self._rule(operation) if len(given) == 1 else None
                result = rule(self, operation, given[0]) if rule else None
            return self.apply(operation, *args, **kwargs) if result is None else result

    def _rule(self, layer):
        """Returns the rule of a layer's class, or of one that it inherits its `call` from."""
        call = None if "call" in vars(layer) else type(layer).call
        parents = (parent for parent in type(layer).__mro__ if parent in self.rules)
        return next((self.rules[parent] for parent in parents if getattr(parent, "call", None) is call), None)

    def apply(self, operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        """Returns the edges of what has no rule: it is opened where that is possible and needed."""
        graph = self._opened(operation, args, kwargs)
        return self.run(graph, _edges((args, kwargs))) if graph else self.operation(operation, *args, **kwargs)

    def _opened(self, operation, args, kwargs):
        """Returns what `operation` is made of, `None` where it stays as it is."""
        inner = operation._flatten_layers() if isinstance(operation, keras.Layer) else ()
        quantized = [layer for layer in inner if isinstance(layer, QuantizedKernel)]
        must = bool(quantized) or isinstance(operation, keras.Model | keras.layers.Lambda)
        # Layers of Keras stay whole: it saves and names them as people know them.
        own = not _is_keras(type(operation)) or not _is_keras(getattr(operation, "activation", None))
        wanted = must or own or isinstance(operation, keras.layers.TimeDistributed) or "call" in vars(operation)
        whole = not isinstance(operation, keras.Layer) and not rewritten(operation)
        if not wanted and (whole or getattr(operation, "activation", None) is exact_gelu):
            return None
        inputs = keras.tree.map_structure(lambda x: _symbolic(x) if isinstance(x, Edge) else x, (args, kwargs))
        tensors = [x for x in keras.tree.flatten(inputs) if isinstance(x, keras.KerasTensor)]
        try:
            graph = opened(operation, lambda: _call(operation, *inputs[0], **inputs[1]), tensors)
        except ConversionError:
            if must:
                raise
            return None
        return graph if wanted or any(map(rewritten, (operation, *graph.operations))) else None

    def operation(self, operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        """Adds an operation that is called as it is."""
        edges = _edges((args, kwargs))
        slots = iter(range(len(edges)))

        def replaced(make):
            return keras.tree.map_structure(
                lambda x: make(x) if isinstance(x, Edge) else _without_variables(x), (args, kwargs)
            )

        symbolic_args, symbolic_kwargs = replaced(_symbolic)
        outputs = operation.compute_output_spec(*symbolic_args, **symbolic_kwargs)
        flat = keras.tree.flatten(outputs)
        call = replaced(lambda edge: Slot(next(slots)))
        whole = self.node(Operation, edges, flat[0].shape[1:], operation=operation, call=call)
        whole.node.name = SEPARATOR.join(self._path)
        whole.node.dtype = _float32_if_real(flat[0].dtype)
        if isinstance(outputs, keras.KerasTensor):
            return whole
        picks = []
        for index, spec in enumerate(flat):
            picks.append(self.node(Pick, [whole], spec.shape[1:], index=index))
            picks[-1].node.dtype = _float32_if_real(spec.dtype)
        return keras.tree.pack_sequence_as(outputs, picks)

    # Pieces that several rules share.

    def sign(self, quantizer: Any, x: Edge) -> Edge:
        if quantizer is None:
            return x
        if is_sign(quantizer):
            return self.node(lce_layers.Sign, [x], x.shape)
        return self.node(lce_layers.Quantize, [x], x.shape, quantizer=quantizer)

    def float_sign(self, quantizer: Any, x: Edge) -> Edge:
        """As `sign`, for a product that isn't binary in LCE."""
        if not is_sign(quantizer):
            return self.sign(quantizer, x)
        constants = {"kernel": np.ones(x.shape[-1]), "bias": np.zeros(x.shape[-1])}
        return self.node(lce_layers.FloatSign, [x], x.shape, constants)

    def add_constant(self, x: Edge, constant: np.ndarray) -> Edge:
        shape = np.shape(constant)
        return self.node(lce_layers.AddConstant, [x], x.shape, {"constant": constant}, constant_shape=shape)

    def reshaped(self, x: Edge, shape: Shape) -> Edge:
        """Returns `x` in another `shape` with the same channels. Its affine moves behind the reshape, and a reshape
        that undoes another one is none."""
        if x.shape == tuple(shape):
            return x
        if isinstance(x.node.options.get("operation"), keras.layers.Reshape):
            (source,) = x.node.inputs
            if source.shape == tuple(shape):
                return source.affine(x.scale, x.shift)
        layer = keras.layers.Reshape([-1 if side is None else side for side in shape])
        return self.operation(layer, Edge(x.node)).affine(x.scale, x.shift)

    def product(self, layer: QuantizedKernel, x: Edge, shape: Shape, **options: Any) -> Edge:
        """The quantized `x` times the layer's kernel, `(height, width, in, out)`; `x` is a map."""
        binary = obstacle(layer) is None
        padding, value = options.get("padding"), options.get("pad_values", 0.0)
        # LCE pads evenly, and with 0 or 1.
        padded_before = padding == "causal" or (binary and padding == "same" and value == -1)
        if padded_before:
            options |= {"padding": "valid", "pad_values": 0.0}
        if padded_before and binary:
            x = self.padded(layer, x, value or 1.0)  # 0 has no sign: see `_without_ones_in_front`
        x = self.sign(layer.input_quantizer, x)
        if padded_before and not binary:
            x = self.padded(layer, x, value)
        if binary:
            values, scale = signs_and_scale(layer)
        else:
            kernel, factors = layer.quantized_kernel()
            values = as_array(kernel)
            scale = np.ones(values.shape[-1]) if factors is None else as_array(factors)
        kernel = values.reshape((1,) * (4 - values.ndim) + values.shape)
        return self.convolution(x, shape, kernel, scale, binary=binary, **options)

    def convolution(self, x: Edge, shape: Shape, kernel: np.ndarray, scale: np.ndarray, **options: Any) -> Edge:
        filters = kernel.shape[-1]
        constants = {"kernel": kernel, "scale": scale, "bias": np.zeros(filters)}
        return self.node(lce_layers.Convolution, [x], shape, constants, filters=filters, **options)

    def padded(self, layer: PaddedKernel, x: Edge, value: float) -> Edge:
        """Puts `value` around the map `x` as `layer` puts its own."""
        *sides, channels = x.shape
        if layer.padding == "same" and None in sides:
            raise ConversionError(
                f"The layer {layer.path!r} can't be frozen for inputs of unknown sides: it pads with "
                f"{layer.pad_values}. Use pad_values=1, or give the model's input its sides."
            )
        paddings = layer.paddings(sides[-len(layer.kernel_size) :])
        paddings = [(0, 0)] * (len(sides) - len(paddings)) + paddings
        shape = (*(side and side + sum(padding) for side, padding in zip(sides, paddings, strict=True)), channels)
        return self.node(lce_layers.Pad, [x], shape, paddings=paddings, value=value)

    def biased_and_activated(self, layer: keras.Layer, x: Edge) -> Edge:
        if layer.use_bias:
            x = x.affine(shift=as_array(layer.bias))
        if layer.activation in (None, keras.activations.linear):
            return x
        return self.apply(keras.layers.Activation(layer.activation), x)


def _call(operation, *args, **kwargs):
    if isinstance(operation, keras.layers.TimeDistributed):
        # Step by step: Keras' own loop hides what it calls.
        return keras.ops.stack([operation.layer(x) for x in keras.ops.unstack(args[0], axis=1)], axis=1)
    if function := rewritten(operation):
        return function(*args)
    return operation.call(*args, **kwargs | outside_training(operation))


def _is_keras(kind):
    """Whether Keras or this library has a class or function, which a process that imports them knows."""
    return kind is None or getattr(kind, "__module__", "").split(".")[0] in ("keras", "keras_binaryvit")


def _symbolic(edge):
    return keras.Input(edge.shape, dtype=edge.node.dtype)


def _float32_if_real(dtype):
    dtype = keras.backend.standardize_dtype(dtype)
    return "float32" if "float" in dtype else dtype


def _without_variables(x):
    """Returns an argument of an operation, with its values if it is a variable or a tensor."""
    if not isinstance(x, keras.Variable) and not keras.ops.is_tensor(x):
        return x
    values = np.array(keras.ops.convert_to_numpy(x))
    return values.astype(_float32_if_real(values.dtype.name))


def _edges(structure):
    return [x for x in keras.tree.flatten(structure) if isinstance(x, Edge)]


def as_array(variable: Any) -> np.ndarray:
    """Returns the values of a variable or tensor in float64."""
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


# A rule for each layer: (lowering, layer, input edge or edges) -> output edge.


def _batch_norm(lowering, layer, x):
    return x.affine(*norm_affine(layer)) if layer.axis in (-1, len(x.shape)) else None


def norm_affine(layer: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Returns what batch normalization is at inference: a scale and a shift for each channel."""
    scale = 1 / np.sqrt(as_array(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale = scale * as_array(layer.gamma)
    shift = -as_array(layer.moving_mean) * scale
    return scale, shift + as_array(layer.beta) if layer.center else shift


def _prelu(lowering, x, slope):
    return lowering.node(lce_layers.PReLU, [x], x.shape, {"negative_slope": -slope})


def _rprelu(lowering, layer, x):
    x = _prelu(lowering, x.affine(shift=-as_array(layer.input_shift)), as_array(layer.slope))
    return x.affine(shift=as_array(layer.output_shift))


def _keras_prelu(lowering, layer, x):
    slope = as_array(layer.alpha)
    if slope.shape[-1] != x.shape[-1] or slope.size != x.shape[-1]:
        return None  # not one for each channel
    return _prelu(lowering, x, slope.reshape(-1))


def _add(lowering, layer, inputs):
    if isinstance(inputs, list | tuple) and {(x.shape, x.node.dtype) for x in inputs} == {(inputs[0].shape, "float32")}:
        return lowering.node(lce_layers.Add, inputs, inputs[0].shape)
    return None


def _dense(lowering, layer, x):
    constants = {"kernel": as_array(layer.kernel), "bias": np.zeros(layer.units)}
    y = lowering.node(lce_layers.Dense, [x], (*x.shape[:-1], layer.units), constants, units=layer.units)
    return lowering.biased_and_activated(layer, y)


def _quant_dense(lowering, layer, x):
    *positions, channels = x.shape
    # LCE's only binary product is a convolution of maps.
    sides = positions if len(positions) == 2 else (None if None in positions else math.prod(positions), 1)
    y = lowering.product(layer, lowering.reshaped(x, (*sides, channels)), (*sides, layer.units))
    return lowering.reshaped(lowering.biased_and_activated(layer, y), (*positions, layer.units))


def _check_channels_last(layer):
    if layer.data_format != "channels_last":
        raise ValueError(
            f"The layer {layer.path!r} can't be frozen: it has data_format={layer.data_format!r}, and LCE and TFLite "
            "convolve channels-last maps only."
        )


def _convolution_options(layer):
    _check_channels_last(layer)
    return {
        "kernel_size": _of_maps(layer.kernel_size),
        "strides": _of_maps(layer.strides),
        "padding": layer.padding,
        "dilation_rate": _of_maps(layer.dilation_rate),
        "groups": layer.groups,
    }


def _of_maps(sizes, rank=2):
    """Returns the sizes of a sequence, or its shape, for the map of height 1 that it becomes; those of maps stay."""
    return (1,) * (rank - len(sizes)) + tuple(sizes)


def _conv(lowering, layer, x):
    shape = layer.compute_output_shape((None, *x.shape))[1:]
    y = lowering.convolution(x, shape, as_array(layer.kernel), np.ones(layer.filters), **_convolution_options(layer))
    return lowering.biased_and_activated(layer, y)


def _quant_conv(lowering, layer, x):
    shape = layer.compute_output_shape((None, *x.shape))[1:]
    options = {**_convolution_options(layer), "pad_values": layer.pad_values}
    # LCE's only binary product is a convolution of maps, of signs that are taken of maps.
    x = lowering.reshaped(x, _of_maps(x.shape, rank=3))
    y = lowering.product(layer, x, _of_maps(shape, rank=3), **options)
    if layer.padding == "causal" and layer.pad_values == 0 and obstacle(layer) is None:
        y = _without_ones_in_front(lowering, layer, y)
    return lowering.reshaped(lowering.biased_and_activated(layer, y), shape)


def _without_ones_in_front(lowering, layer, y):
    """The output `y` of a binary causal convolution that pads with 1, as if it padded with 0."""
    _, steps, _ = y.shape
    (kernel_size,), (stride,), (dilation,) = layer.kernel_size, layer.strides, layer.dilation_rate
    if steps is None:
        raise ConversionError(
            f"The layer {layer.path!r} can't be frozen for inputs of unknown length: it pads with 0, which is no sign. "
            "Use pad_values=1 or -1, or give the model's input a length."
        )
    padding = dilation * (kernel_size - 1)
    concerned = min(-(-padding // stride), steps)
    positions = stride * np.arange(concerned)[:, None] + dilation * np.arange(kernel_size)
    values, scale = signs_and_scale(layer)
    sums = (positions < padding) @ values.sum(1) * scale
    if steps == 1:
        return y.affine(shift=-sums[0])
    options = {"constant_shape": sums.shape}
    return lowering.node(lce_layers.AddInFront, [y], y.shape, {"constant": -sums}, **options) if concerned else y


def _quant_depthwise_conv(lowering, layer, x):
    _check_channels_last(layer)
    x = lowering.sign(layer.input_quantizer, x)
    padding = layer.padding
    if padding == "same" and layer.pad_values != 0:
        x, padding = lowering.padded(layer, x, layer.pad_values), "valid"
    names = ("kernel_size", "strides", "depth_multiplier", "data_format", "dilation_rate")
    options = {name: getattr(layer, name) for name in names}
    constant = keras.layers.DepthwiseConv2D(padding=padding, use_bias=False, **options)
    constant.build((None, *x.shape))
    constant.kernel.assign(layer.quantized_kernel()[0])
    return lowering.biased_and_activated(layer, lowering.operation(constant, x))


def _global_pooling(lowering, layer, x):
    if layer.keepdims or layer.data_format != "channels_last":
        return None
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
    y = _quant_dense(lowering, layer.dense, lowering.call(layer.shift, x))
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
            signs.append(lowering.float_sign(layer.input_quantizer, projected.affine(shift=as_array(shift.shift))))
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
    if layer.use_pooling_branches:
        terms.append(inside(lowering, layer.branches, h))
    return lowering.node(lce_layers.Add, terms, x.shape)


def _patch_embedding(lowering, layer, x):
    x = inside(lowering, layer.convolution, x)
    if layer.use_norm:
        x = inside(lowering, layer.norm, x)
    constant = as_array(layer.position_embedding)
    if layer.use_class_token:
        height, width, channels = x.shape
        x = lowering.operation(keras.layers.Reshape((height * width, 1, channels)), x)
        x = lowering.operation(keras.layers.ZeroPadding2D(((1, 0), (0, 0)), data_format="channels_last"), x)
        constant[0] += as_array(layer.class_token)[0]
    return lowering.add_constant(x, constant)


def _patch_merging(lowering, layer, x):
    x = inside(lowering, layer.input_norm, x)
    y = lowering.call(layer.shift, x) if layer.binary else x
    y = inside(lowering, layer.norm, inside(lowering, layer.convolution, y))
    if layer.binary:
        pooled = _shortcut(lowering, _average_pool(lowering, x, 2), layer.embed_dim)
        y = _rprelu(lowering, layer.activation, lowering.node(lce_layers.Add, [y, pooled], y.shape))
    return lowering.add_constant(y, as_array(layer.position_embedding))


# Rules for operations of keras.ops, by name: (lowering, operation, *arguments) -> output edge, or `None` for none.


def _channelwise(x, constant):
    """Returns `constant` as one value or one for each channel of the edge `x`, `None` where it is neither."""
    values, channels = as_array(constant), x.shape[-1:]
    if x.node.dtype != "float32":
        return None
    if values.size == 1 and values.ndim <= len(channels):
        return values.reshape(())
    fits = values.shape[-1:] == channels == (values.size,) and values.ndim <= 1 + len(x.shape)
    return values.reshape(-1) if fits else None


_AFFINES: dict[str, Callable] = {  # of an edge x and a constant c, if that comes second
    "Add": lambda x, c, second: x.affine(shift=c),
    "Subtract": lambda x, c, second: x.affine(shift=-c) if second else x.affine(-1.0, c),
    "Multiply": lambda x, c, second: x.affine(c),
    "Divide": lambda x, c, second: x.affine(1 / c) if second and np.all(c != 0) else None,
}
_AFFINES["TrueDivide"] = _AFFINES["Divide"]


def _arithmetic(lowering, operation, x, y):
    name, second = type(operation).__name__, isinstance(x, Edge)
    if second and isinstance(y, Edge):
        return _add(lowering, operation, [x, y]) if name == "Add" else None
    edge, constant = (x, y) if second else (y, x)
    constant = _channelwise(edge, constant)
    return None if constant is None else _AFFINES[name](edge, constant, second)


def _reshape_operation(lowering, operation, x):
    batch, *shape = operation.newshape if isinstance(operation.newshape, tuple | list) else (operation.newshape,)
    if batch is None or (batch == -1 and shape and math.prod(shape) == math.prod(x.shape)):
        shape = [-1 if side is None else side for side in shape]
        return lowering.operation(keras.layers.Reshape(shape), x)
    return None


def _cast_operation(lowering, operation, x):
    """Real numbers are float32 in the frozen model, whatever they were in training."""
    if "float" not in keras.backend.standardize_dtype(operation.dtype):
        return None
    return x if x.node.dtype == "float32" else lowering.operation(type(operation)("float32"), x)


_OPERATIONS: dict[str, Callable] = {
    **dict.fromkeys(_AFFINES, _arithmetic),
    "Cast": _cast_operation,
    "Reshape": _reshape_operation,
}

RULES: dict[type, Callable] = {
    **{getattr(keras.layers, name): lambda lowering, layer, x: x for name in _IDENTITIES.split()},
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
    layers.QuantConv1D: _quant_conv,
    layers.QuantConv2D: _quant_conv,
    layers.QuantDense: _quant_dense,
    layers.QuantDepthwiseConv2D: _quant_depthwise_conv,
    layers.ResidualAffine: lambda lowering, layer, x: x.affine(as_array(layer.scale), as_array(layer.shift)),
    layers.RPReLU: _rprelu,
    layers.Shift: lambda lowering, layer, x: x.affine(shift=as_array(layer.shift)),
}
