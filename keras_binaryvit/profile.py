"""summary: what a model costs, layer by layer - parameters, memory, and multiply-adds by the bits of their operands.

A model is traced once, without computing anything, to see which layers run on which shapes. `_macs` knows how many
multiply-adds each type of layer takes; a type that it doesn't know is named, never counted as 0.
"""

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras

from keras_binaryvit import layers, quantizers
from keras_binaryvit.deploy import lce_layers, runtime_layers
from keras_binaryvit.deploy.binary import obstacle
from keras_binaryvit.layers.quantized import QuantizedKernel
from keras_binaryvit.tables import as_text, new_table


@dataclass(frozen=True)
class LayerProfile:
    """What one layer, without the layers inside it, costs for one image.

    Attributes:
        name: Names of the layers around it and its own, as in `block_0/attention/query/dense`.
        output_shape: Of each output, without the batch; empty if the layer isn't called.
        input_precision: Bits of the quantized inputs, `None` if they are real.
        parameters: Number of parameters by bits. Kernels count with the bits that they have in a
            converted file: 1 where the product is binary there (`deploy.binary_table`), else 32.
        trainable_parameters: How many of them are trained.
        memory: Bytes that they take at inference; of a batch normalization, two vectors instead of four.
        float32_memory: Bytes of the same in float32.
        macs: Number of multiply-adds by bits, those of the wider operand. Sums over windows, additions, scales for
            each channel and activations are none.
        uncounted: What of it isn't counted, "" if all is.
    """

    name: str
    output_shape: tuple[tuple[int, ...], ...]
    input_precision: int | None
    parameters: Mapping[int, int]
    trainable_parameters: int
    memory: float
    float32_memory: float
    macs: Mapping[int, int]
    uncounted: str = ""


@dataclass(frozen=True)
class ModelProfile:
    """What a model costs for one image: the sums over its `layers`; `str(...)` is the table.

    Attributes:
        name: The model's.
        layers: All layers, each followed by those inside it.
    """

    name: str
    layers: tuple[LayerProfile, ...]

    @property
    def parameters(self) -> dict[int, int]:
        """Number of parameters by bits."""
        return _total(layer.parameters for layer in self.layers)

    @property
    def trainable_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(layer.trainable_parameters for layer in self.layers)

    @property
    def memory(self) -> float:
        """Bytes of the parameters at inference."""
        return sum(layer.memory for layer in self.layers)

    @property
    def float32_memory(self) -> float:
        """Bytes of the same parameters in float32."""
        return sum(layer.float32_memory for layer in self.layers)

    @property
    def compression_ratio(self) -> float:
        """`memory / float32_memory`, as Larq defines it."""
        return self.memory / max(self.float32_memory, 1)

    @property
    def macs(self) -> dict[int, int]:
        """Number of multiply-adds by bits."""
        return _total(layer.macs for layer in self.layers)

    @property
    def ops(self) -> float:
        """Operations as papers on binary networks count them: BOPs / 64 + FLOPs, a multiply-add being one of either.

        Source: Bi-Real Net, arXiv 1808.00278, section 4.4.
        """
        return sum(count / 64 if bits == 1 else count for bits, count in self.macs.items())

    @property
    def uncounted(self) -> tuple[str, ...]:
        """What isn't counted: layers by name and type."""
        return tuple(f"{layer.name}: {layer.uncounted}" for layer in self.layers if layer.uncounted)

    def table(self, depth: int | None = 1) -> str:
        """Returns the summary as text.

        Args:
            depth: How many levels of nested layers have rows of their own, `None` for all. The row of a layer sums up
                those inside it.
        """
        return f"{_layer_table(self, depth)}\n{_total_table(self)}"

    def __str__(self) -> str:
        return self.table()


def summary(
    model: keras.Model,
    print_fn: Callable[[str], object] | None = None,
    depth: int | None = 1,
    input_shape: Sequence[int] | None = None,
) -> ModelProfile:
    """Prints what a model costs, as `larq.models.summary` does, and returns it.

    For each layer: the bits of its quantized inputs, the output shapes, parameters by bits, memory, and multiply-adds
    by the bits of the wider operand. Products inside attention are counted too: q . k by the bits of q and k, a . v by
    those of the probabilities and v. Below: totals, the size against float32, and OPs = BOPs / 64 + FLOPs.

    Args:
        model: A built model: one of the library's, a frozen one, or any other Keras model.
        print_fn: What the text is given to; `print` by default.
        depth: How many levels of nested layers have rows of their own: 1 for a row for each block, `None` for all.
        input_shape: Of one input, without the batch, for models that leave it open.

    Returns:
        The figures, layer by layer to the innermost.

    Raises:
        ValueError: The model isn't built, or has sides of unknown size and `input_shape` doesn't give them.
    """
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} isn't built, so its layers have no shapes. Call it with some data first, or "
            "start it with keras.Input."
        )
    calls = _trace(model, _input_specs(model, input_shape))
    profile = ModelProfile(model.name, tuple(_profiles(model, "", calls, set())))
    text = profile.table(depth)
    (print_fn or print)(text)
    return profile


# --- Which layers are called with which shapes ---


@dataclass(frozen=True)
class _Call:
    """A call of a layer: shapes of its arguments by name, and of its outputs."""

    arguments: dict[str, object]
    outputs: tuple[tuple[int, ...], ...]

    @property
    def output(self):
        return self.outputs[0]


def _input_specs(model, input_shape):
    if input_shape is not None:
        return keras.KerasTensor((1, *input_shape))
    inputs = getattr(model, "inputs", None) or []
    shapes = [tuple(tensor.shape) for tensor in inputs]
    if not shapes or any(None in shape[1:] for shape in shapes):
        raise ValueError(
            f"The shapes of the inputs of {model.name!r} aren't known: {shapes or 'it has no symbolic inputs'}. "
            "Pass input_shape, without the batch: summary(model, input_shape=(224, 224, 3))"
        )
    specs = [keras.KerasTensor((1, *tensor.shape[1:]), tensor.dtype) for tensor in inputs]
    return specs if len(specs) > 1 else specs[0]


def _trace(model, inputs):
    """Returns the calls of all layers of `model`, `{id of layer: [_Call, ...]}`, in the order of the first ones."""
    calls: dict[int, list[_Call]] = {}

    def recorded(layer, method):
        call, signature = getattr(layer, method), inspect.signature(layer.call)

        def record(*args, **kwargs):
            # The entry is made before the layers inside make theirs: that is the order of the rows.
            entry = calls.setdefault(id(layer), [])
            outputs = call(*args, **kwargs)
            arguments = signature.bind(*args, **kwargs).arguments
            shapes = {name: keras.tree.map_structure(_shape, value) for name, value in arguments.items()}
            entry.append(_Call(shapes, tuple(_shape(tensor) for tensor in keras.tree.flatten(outputs))))
            return outputs

        return record

    class Trace(keras.Operation):
        def call(self, inputs):
            calls.clear()  # a backend may trace twice
            return model(inputs, training=False) if model._call_has_training_arg else model(inputs)

    # Keras calls another method of layers that `model.quantize` has changed.
    methods = [
        (layer, "quantized_call" if getattr(layer, "quantization_mode", None) else "call")
        for layer in {id(layer): layer for layer in model._flatten_layers()}.values()
    ]
    try:
        for layer, method in methods:
            # Past Keras' own bookkeeping of attributes, which would take it for a part of the layer.
            object.__setattr__(layer, method, recorded(layer, method))
        Trace().compute_output_spec(inputs)
    finally:
        for layer, method in methods:
            layer.__dict__.pop(method, None)
    return calls


def _shape(value):
    return tuple(value.shape) if hasattr(value, "shape") else None


# --- Rows ---


def _profiles(layer, name, calls, seen):
    """Yields the profiles of `layer` and of all layers inside it; a shared layer's only once."""
    seen.add(id(layer))
    children = [child for child in layer._flatten_layers(recursive=False, include_self=False) if id(child) not in seen]
    order = {identity: position for position, identity in enumerate(calls)}
    children.sort(key=lambda child: order.get(id(child), len(order)))

    yield _profile(layer, name, calls.get(id(layer), []))
    for child in children:
        if id(child) not in seen:  # a sibling may hold it too
            yield from _profiles(child, f"{name}/{child.name}" if name else child.name, calls, seen)


def _profile(layer, name, calls):
    inner = {id(weight) for child in layer._flatten_layers(include_self=False) for weight in child.weights}
    weights = [weight for weight in layer.weights if id(weight) not in inner]
    trainable = {id(weight) for weight in layer.trainable_weights}
    parameters: dict[int, int] = {}
    memory = float32_memory = 0.0
    for weight in weights:
        count, bits = math.prod(weight.shape), _weight_precision(layer, weight)
        parameters[bits] = parameters.get(bits, 0) + count
        # At inference a batch normalization is a scale and a shift: the running statistics are part of them.
        if not (isinstance(layer, keras.layers.BatchNormalization) and weight.name in ("beta", "gamma")):
            memory += count * bits / 8
            float32_memory += count * 4
    counts, uncounted = _count(layer, calls)
    return LayerProfile(
        name=name or layer.name,
        output_shape=tuple(shape[1:] for shape in calls[0].outputs) if calls else (),
        input_precision=_input_precision(layer),
        parameters=parameters,
        trainable_parameters=sum(math.prod(weight.shape) for weight in weights if id(weight) in trainable),
        memory=memory,
        float32_memory=float32_memory,
        macs=counts,
        uncounted=uncounted,
    )


def _input_precision(layer):
    if isinstance(layer, lce_layers.Attention | runtime_layers.FusedLayer) or (
        isinstance(layer, lce_layers.Convolution) and layer.binary
    ):
        return 1
    return getattr(getattr(layer, "input_quantizer", None), "precision", None)


def _weight_precision(layer, weight):
    if isinstance(layer, runtime_layers.FusedLayer) and weight.name.startswith("kernel"):
        return 1
    if isinstance(layer, lce_layers.Convolution) and weight is layer.kernel:
        return 1 if layer.binary else 32
    if isinstance(layer, QuantizedKernel) and weight is layer.kernel:
        return 32 if obstacle(layer) else 1
    digits = re.search(r"\d+", keras.backend.standardize_dtype(weight.dtype))
    return int(digits[0]) if digits else 8


def _count(layer, calls):
    """Returns the multiply-adds of the layer itself by bits, and what of it isn't counted."""
    counts = []
    for call in calls:
        macs = _macs(layer, call)
        if macs is None:
            inner = any(True for _ in layer._flatten_layers(include_self=False))
            return {}, f"{type(layer).__name__}'s own operations" if inner else type(layer).__name__
        counts.append({bits: count for bits, count in macs.items() if count})
    operations = [
        operation
        for operation in (layer.operations if isinstance(layer, keras.Function) else [])
        if type(operation).__name__ in _PRODUCTS and not isinstance(operation, keras.Layer)
    ]
    return _total(counts), ", ".join(f"keras.ops {type(operation).__name__}" for operation in operations)


# --- Multiply-adds by type of layer ---


@functools.singledispatch
def _macs(layer: keras.Layer, call: _Call) -> dict[int, int] | None:
    """Returns the multiply-adds of a call of `layer` itself by bits, `None` if its type is unknown."""
    return None


def _counts(*layer_types):
    """Registers a function as `_macs` of the layers of some types."""

    def register(function):
        for layer_type in layer_types:
            _macs.register(layer_type, function)
        return function

    return register


def _precision(layer):
    """Returns the bits of the wider operand of the product of a layer's inputs with its kernel."""
    return max(_input_precision(layer) or 32, _weight_precision(layer, layer.kernel))


def _total(counts):
    total: dict[int, int] = {}
    for by_bits in counts:
        for bits, count in by_bits.items():
            total[bits] = total.get(bits, 0) + count
    return dict(sorted(total.items()))


@_counts(
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    lce_layers.Dense,
    lce_layers.Convolution,
)
def _products_with_kernel(layer, call):
    units = layer.kernel.shape[-1]
    return {_precision(layer): math.prod(call.output) // units * math.prod(layer.kernel.shape)}


@_counts(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
def _transposed_convolution(layer, call):
    inputs = call.arguments["inputs"]
    channels = inputs[-1] if layer.data_format == "channels_last" else inputs[1]
    return {32: math.prod(inputs) // channels * math.prod(layer.kernel.shape)}


@_counts(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D, lce_layers.DepthwiseConvolution)
def _depthwise_convolution(layer, call):
    return {32: math.prod(call.output) * math.prod(layer.kernel_size)}


@_counts(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
def _separable_convolution(layer, call):
    kernels = math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape)
    return {32: math.prod(call.output) // layer.filters * kernels}


@_counts(keras.layers.EinsumDense)
def _einsum_dense(layer, call):
    # Each value of a combination of all indices is one multiply-add.
    inputs, kernel = layer.equation.split("->")[0].split(",")
    shape = call.arguments["inputs"]
    named = inputs.replace("...", "")
    unnamed = len(shape) - len(named)  # what an ellipsis stands for
    sizes = dict(zip(kernel, layer.kernel.shape, strict=True))
    before = inputs.index("...") if "..." in inputs else 0
    sizes |= dict(zip(named, shape[:before] + shape[before + unnamed :], strict=True))
    return {32: math.prod(sizes.values()) * math.prod(shape[before : before + unnamed])}


@_counts(layers.BinarySelfAttention)
def _binary_attention(layer, call):
    _, height, width, channels = call.output
    products = (height * width) * (height * width // layer.reduction**2) * channels
    signs = _input_precision(layer) or 32
    probabilities = quantizers.ElasticBinarizer.precision if layer.binary_probabilities else 32
    return _total([{signs: products}, {max(signs, probabilities): products}])


@_counts(lce_layers.Attention)
def _frozen_attention(layer, call):
    queries, keys, _ = call.arguments["inputs"]
    return {1: 2 * math.prod(queries) * math.prod(keys[1:3])}


@_counts(runtime_layers.FeedForward)
def _fused_feed_forward(layer, call):
    return {1: math.prod(call.output[:-1]) * 2 * math.prod(layer.kernel_1.shape)}


@_counts(runtime_layers.SelfAttention)
def _fused_attention(layer, call):
    batch, height, width, channels = call.output
    queries, keys = height * width, height * width // layer.reduction**2
    projections = 2 * queries + (len(layer.kernel_names) - 2) * keys
    return {1: batch * (projections * channels**2 + 2 * queries * keys * channels)}


@_counts(runtime_layers.PoolingBranches)
def _fused_pooling(layer, call):
    return {}  # sums over windows and scales, which are none


@_counts(runtime_layers.PatchMerging)
def _fused_patch_merging(layer, call):
    return {1: math.prod(call.output[:-1]) * math.prod(layer.kernel.shape)}


@_counts(keras.layers.MultiHeadAttention)
def _multi_head_attention(layer, call):
    queries, keys = (math.prod(call.arguments[name][1:-1]) for name in ("query", "value"))
    return {32: layer.num_heads * queries * keys * (layer.key_dim + layer.value_dim)}


@_counts(keras.layers.GroupQueryAttention)
def _group_query_attention(layer, call):
    queries, keys = (math.prod(call.arguments[name][1:-1]) for name in ("query", "value"))
    return {32: layer.num_query_heads * queries * keys * 2 * layer.head_dim}


_NO_PRODUCTS = """
    ActivityRegularization Activation Add AlphaDropout Average AveragePooling1D AveragePooling2D AveragePooling3D
    BatchNormalization CenterCrop Concatenate Cropping1D Cropping2D Cropping3D Dropout ELU Embedding Flatten
    GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization Identity InputLayer LayerNormalization
    LeakyReLU Masking MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum Multiply Normalization PReLU Permute
    RMSNormalization ReLU RepeatVector Rescaling Reshape Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D
    Subtract UnitNormalization UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""


@_counts(
    keras.Function,
    keras.Sequential,
    *(getattr(keras.layers, name) for name in _NO_PRODUCTS.split()),
    layers.BinaryFeedForward,
    layers.BinaryProjection,
    layers.BinaryTransformerBlock,
    layers.MultiBranchAveragePooling,
    layers.PatchEmbedding,
    layers.PatchMerging,
    layers.RPReLU,
    layers.ResidualAffine,
    layers.Shift,
    quantizers.ElasticBinarizer,
    lce_layers.Add,
    lce_layers.AddConstant,
    lce_layers.AddInFront,
    lce_layers.Affine,
    lce_layers.AveragePooling,
    lce_layers.FloatSign,
    lce_layers.GlobalAveragePooling,
    lce_layers.GroupMean,
    lce_layers.PReLU,
    lce_layers.Quantize,
    lce_layers.Sign,
    lce_layers.Tile,
    lce_layers.Upsampling,
)
def _none(layer, call):
    return {}


# Operations of functional models that aren't layers.
_PRODUCTS = (
    "Conv ConvTranspose Correlate DepthwiseConv Dot DotProductAttention Einsum Inner Kron Matmul Outer SeparableConv "
    "Tensordot Vdot"
).split()


# --- Tables ---


def _layer_table(profile, depth):
    bits, precisions = list(profile.parameters), list(profile.macs)
    header = ["Layer", "Input prec. (bit)", "Outputs", *(f"# {b}-bit" for b in bits), "Memory (kB)"]
    header += [f"{p}-bit MACs" for p in precisions]
    groups: dict[str, list[LayerProfile]] = {}
    for layer in profile.layers:
        groups.setdefault("/".join(layer.name.split("/")[:depth]), []).append(layer)
    rows = [_row(name, group, bits, precisions) for name, group in groups.items()]
    table = new_table(*header, title=f"{profile.name} stats")
    for row in filter(None, rows):
        table.add_row(*row)
    table.add_section()
    table.add_row(*_row("Total", profile.layers, bits, precisions))
    return as_text(table)


def _row(name, group, bits, precisions):
    """Returns the cells of a row for the profiles of `group`, none if there is nothing to count in it."""
    parameters, macs = (_total(getattr(layer, name) for layer in group) for name in ("parameters", "macs"))
    uncounted = any(layer.uncounted for layer in group)
    if not (parameters or macs or uncounted):
        return []
    inputs = sorted({layer.input_precision for layer in group} - {None})
    outputs = group[0].output_shape if name != "Total" else ()
    return [
        name,
        ", ".join(map(str, inputs)) if name != "Total" else "",
        ", ".join(str((-1, *shape)) for shape in outputs),
        *(f"{parameters.get(b, 0):,}" for b in bits),
        f"{sum(layer.memory for layer in group) / 1024:,.2f}",
        *(f"{macs.get(p, 0):,}" + (" + ?" if uncounted else "") for p in precisions),
    ]


def _total_table(profile):
    parameters, macs = sum(profile.parameters.values()), sum(profile.macs.values())
    table = new_table(title=f"{profile.name} summary")
    for name, value in [
        ["Total params", f"{parameters:,}"],
        ["Trainable params", f"{profile.trainable_parameters:,}"],
        ["Non-trainable params", f"{parameters - profile.trainable_parameters:,}"],
        ["Model size", _size(profile.memory)],
        ["Model size (float32 weights)", _size(profile.float32_memory)],
        ["Compression ratio of memory", f"{profile.compression_ratio:.4f}"],
        ["Number of MACs", f"{macs:,}"],
        ["Ratio of MACs that are binarized", f"{profile.macs.get(1, 0) / max(macs, 1):.4f}"],
        ["OPs (1-bit MACs / 64 + others)", f"{profile.ops:,.0f}"],
        *(["Not counted", what] for what in profile.uncounted),
    ]:
        table.add_row(name, value)
    return as_text(table)


def _size(size):
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.2f} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"
