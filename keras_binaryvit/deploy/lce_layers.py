"""The layers of a frozen model: what is left of binary layers when nothing is to be trained.

Each is one operation, or very few, of the Larq Compute Engine's converter; their weights are constants that `freeze`
sets. All compute in float32.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any, ClassVar, get_origin

import keras
import numpy as np
from keras import ops

from keras_binaryvit import quantizers
from keras_binaryvit.deploy import composite
from keras_binaryvit.layers.quantized import same_padding
from keras_binaryvit.typing import QuantizerLike, Shape, Tensor

_PACKAGE = "keras_binaryvit"
# A power of two: products with it are exact.
_HUGE = np.float32(2.0**100)


class InferenceLayer(keras.layers.Layer):
    """A layer of constants, in float32.

    The annotations of a class are arguments of its constructor, kept as attributes; their values are the defaults.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        names = self._arguments()
        given = dict(zip(names, args, strict=False)) | {name: kwargs.pop(name) for name in names if name in kwargs}
        super().__init__(**{**kwargs, "dtype": "float32", "trainable": False})
        for name, value in given.items():
            setattr(self, name, _with_tuples(value))

    def _arguments(self):
        annotations = [
            item
            for kind in type(self).__mro__
            for item in inspect.get_annotations(kind).items()
            if issubclass(kind, InferenceLayer)
        ]
        return [name for name, annotation in annotations if get_origin(annotation) is not ClassVar]

    def get_config(self) -> dict:
        return {**super().get_config(), **{name: getattr(self, name) for name in self._arguments()}}

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def constants(self, *_: Any, **values: Any) -> dict[str, Any]:
        """Returns the layer's weights, of the constants of its node in the graph."""
        return values

    def _constant(self, name, shape):
        return self.add_weight(name=name, shape=shape, initializer="zeros", trainable=False)

    def _build_depthwise(self, height, width, channels):
        self.kernel = self._constant("kernel", (height, width, channels, 1))
        self.bias = self._constant("bias", (channels,))

    def _depthwise(self, inputs, padding="valid"):
        return ops.depthwise_conv(inputs, self.kernel, 1, padding, data_format="channels_last") + self.bias


def _with_tuples(value):
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value  # JSON has lists only


@keras.saving.register_keras_serializable(_PACKAGE)
class Sign(InferenceLayer):
    """+1 where x >= 0, else -1; written as the LCE converter recognizes it."""

    def call(self, inputs: Tensor) -> Tensor:
        return composite.signs(self, inputs) if composite.writes(lce=True) else ops.where(inputs >= 0, 1.0, -1.0)


@keras.saving.register_keras_serializable(_PACKAGE)
class Quantize(InferenceLayer):
    """A quantizer that isn't a sign, whatever `quantizers.get` takes, applied to activations."""

    quantizer: Any

    def __init__(self, quantizer: QuantizerLike, **kwargs: Any):
        super().__init__(quantizer=quantizers.get(quantizer), **kwargs)

    def call(self, inputs: Tensor) -> Tensor:
        return self.quantizer(inputs)

    def get_config(self) -> dict:
        return {**super().get_config(), "quantizer": quantizers.serialize(self.quantizer)}


@keras.saving.register_keras_serializable(_PACKAGE)
class Pad(InferenceLayer):
    """Puts a value around maps; `paddings` are `((top, bottom), (left, right))`."""

    paddings: Sequence[tuple[int, int]]
    value: float

    def call(self, inputs: Tensor) -> Tensor:
        return ops.pad(inputs, ((0, 0), *self.paddings, (0, 0)), constant_values=self.value)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *sides, channels = input_shape
        padded = (side and side + sum(around) for side, around in zip(sides, self.paddings, strict=True))
        return batch, *padded, channels


@keras.saving.register_keras_serializable(_PACKAGE)
class Convolution(InferenceLayer):
    """A convolution of maps, with Keras' arguments and what "same" pads with; a binary one, of inputs of +-1, holds +-1
    and a scale for each filter."""

    filters: int
    kernel_size: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: str = "valid"
    pad_values: float = 0.0
    dilation_rate: tuple[int, int] = (1, 1)
    groups: int = 1
    binary: bool = False

    def build(self, input_shape: Shape) -> None:
        self.kernel = self._constant("kernel", (*self.kernel_size, input_shape[-1] // self.groups, self.filters))
        if self.binary:
            self.scale = self._constant("scale", (self.filters,))
        self.bias = self._constant("bias", (self.filters,))

    def constants(self, **values: Any) -> dict[str, Any]:
        return values if self.binary else {"kernel": values["kernel"] * values["scale"], "bias": values["bias"]}

    def call(self, inputs: Tensor) -> Tensor:
        if self.binary and composite.writes(lce=True):
            return self._written(inputs)
        padding = self.padding
        if padding == "same" and self.pad_values != 0:
            around = [same_padding(*axis) for axis in self._axes(ops.shape(inputs)[1:3])]
            inputs, padding = ops.pad(inputs, ((0, 0), *around, (0, 0)), constant_values=self.pad_values), "valid"
        options = {"data_format": "channels_last", "dilation_rate": self.dilation_rate}
        outputs = ops.conv(inputs, self.kernel, self.strides, padding, **options)
        return outputs * self.scale + self.bias if self.binary else outputs + self.bias

    def _axes(self, sides):
        return zip(sides, self.kernel_size, self.strides, self.dilation_rate, strict=True)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *sides, _ = input_shape
        sides = [
            side and -(-(side - (kernel_size - 1) * dilation * (self.padding == "valid")) // stride)
            for side, kernel_size, stride, dilation in self._axes(sides)
        ]
        return batch, *sides, self.filters

    def _written(self, signs):
        import tensorflow as tf

        with tf.init_scope():  # where variables have values
            kernel, scale, bias = (ops.convert_to_numpy(variable) for variable in (self.kernel, self.scale, self.bias))
        height, width, _, filters = kernel.shape
        filter_bits = composite.pack(kernel).reshape(filters, height, width, -1)
        valid = self.padding == "valid"
        return composite.operator(
            self,
            "LceBconv2d",
            self.compute_output_shape(tuple(signs.shape)),
            "float32",
            *(composite.bits_of(signs), filter_bits, scale, bias),
            channels_in=signs.shape[-1],
            dilation_height_factor=self.dilation_rate[0],
            dilation_width_factor=self.dilation_rate[1],
            fused_activation_function=0,
            pad_values=0 if valid else int(self.pad_values),
            padding=1 if valid else 0,
            stride_height=self.strides[0],
            stride_width=self.strides[1],
        )


@keras.saving.register_keras_serializable(_PACKAGE)
class Dense(InferenceLayer):
    """A real dense layer: `x . kernel + bias`."""

    units: int

    def build(self, input_shape: Shape) -> None:
        self.kernel = self._constant("kernel", (input_shape[-1], self.units))
        self.bias = self._constant("bias", (self.units,))

    def call(self, inputs: Tensor) -> Tensor:
        return ops.matmul(inputs, self.kernel) + self.bias

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return *input_shape[:-1], self.units


@keras.saving.register_keras_serializable(_PACKAGE)
class DepthwiseConvolution(InferenceLayer):
    """A convolution of each channel of maps with a kernel of its own, stride 1, zeros around the map."""

    kernel_size: tuple[int, int]

    def build(self, input_shape: Shape) -> None:
        self._build_depthwise(*self.kernel_size, input_shape[-1])

    def call(self, inputs: Tensor) -> Tensor:
        return self._depthwise(inputs, "same")


@keras.saving.register_keras_serializable(_PACKAGE)
class Affine(InferenceLayer):
    """`kernel * x + bias` for each channel. On maps one depthwise 1x1 convolution: one pass over memory, not two."""

    def build(self, input_shape: Shape) -> None:
        self._build_depthwise(1, 1, input_shape[-1])

    def call(self, inputs: Tensor) -> Tensor:
        if len(inputs.shape) != 4:
            return inputs * ops.reshape(self.kernel, (-1,)) + self.bias
        return self._depthwise(inputs)


@keras.saving.register_keras_serializable(_PACKAGE)
class AddConstant(InferenceLayer):
    """`x + constant`, of the shape `(channels,)` or of a whole map."""

    constant_shape: tuple[int, ...]

    def build(self, input_shape: Shape) -> None:
        self.constant = self._constant("constant", self.constant_shape)

    def call(self, inputs: Tensor) -> Tensor:
        return inputs + self.constant


@keras.saving.register_keras_serializable(_PACKAGE)
class AddInFront(AddConstant):
    """Adds a constant, `(columns, channels)`, to the first columns of maps with two columns or more.

    In two parts, always: LCE's converter takes any constant that is added to a whole binary convolution for its bias.
    """

    def call(self, inputs: Tensor) -> Tensor:
        columns = min(self.constant_shape[0], inputs.shape[2] - 1)
        first, others = inputs[:, :, :columns] + self.constant[:columns], inputs[:, :, columns:]
        if columns < self.constant_shape[0]:
            others = others + self.constant[columns:]
        return ops.concatenate([first, others], axis=2)


@keras.saving.register_keras_serializable(_PACKAGE)
class PReLU(InferenceLayer):
    """x where x > 0, else slope * x; written as the LCE converter recognizes it."""

    def build(self, input_shape: Shape) -> None:
        shape = (1,) * max(len(input_shape) - 2, 0) + (input_shape[-1],)
        self.negative_slope = self._constant("negative_slope", shape)

    def call(self, inputs: Tensor) -> Tensor:
        return ops.relu(inputs) + self.negative_slope * ops.relu(-inputs)


@keras.saving.register_keras_serializable(_PACKAGE)
class Add(InferenceLayer):
    """The sum of two or more tensors, in one pass over memory."""

    def call(self, inputs: Tensor) -> Tensor:
        if keras.backend.backend() == "tensorflow" and len(inputs) > 2:
            import tensorflow as tf

            return tf.add_n(inputs)
        return sum(inputs[1:], start=inputs[0])

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape[0]


@keras.saving.register_keras_serializable(_PACKAGE)
class AveragePooling(InferenceLayer):
    """The mean over squares of side `size` that don't overlap."""

    size: int

    def call(self, inputs: Tensor) -> Tensor:
        return ops.average_pool(inputs, self.size, self.size, "valid", data_format="channels_last")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, channels = input_shape
        return batch, height // self.size, width // self.size, channels


@keras.saving.register_keras_serializable(_PACKAGE)
class GlobalAveragePooling(InferenceLayer):
    """The mean over all positions of a map."""

    def call(self, inputs: Tensor) -> Tensor:
        return ops.mean(inputs, axis=(1, 2))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape[0], input_shape[-1]


@keras.saving.register_keras_serializable(_PACKAGE)
class Upsampling(InferenceLayer):
    """Repeats each position over a square of side `size`."""

    size: int

    def call(self, inputs: Tensor) -> Tensor:
        _, height, width, _ = inputs.shape
        size = (height * self.size, width * self.size)
        return ops.image.resize(inputs, size, interpolation="nearest", data_format="channels_last")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, channels = input_shape
        return batch, height * self.size, width * self.size, channels


@keras.saving.register_keras_serializable(_PACKAGE)
class Tile(InferenceLayer):
    """Whole copies of all channels, side by side."""

    copies: int

    def call(self, inputs: Tensor) -> Tensor:
        return ops.tile(inputs, (1,) * (len(inputs.shape) - 1) + (self.copies,))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return *input_shape[:-1], input_shape[-1] * self.copies


@keras.saving.register_keras_serializable(_PACKAGE)
class GroupMean(InferenceLayer):
    """The mean of `size` adjacent channels, of maps as a grouped convolution: it needs no reshape."""

    size: int

    def call(self, inputs: Tensor) -> Tensor:
        if len(inputs.shape) != 4:
            *leading, channels = ops.shape(inputs)
            return ops.mean(ops.reshape(inputs, (*leading, channels // self.size, self.size)), axis=-1)
        means = inputs.shape[-1] // self.size
        # Eight outputs in a group give kernels for vectors work; the zeros among them cost nothing beside the reads.
        width = math.gcd(means, 8)
        kernel = np.kron(np.eye(width), np.full((self.size, 1), 1 / self.size))
        kernel = np.tile(kernel, (1, means // width)).astype("float32")[None, None]
        return ops.conv(inputs, ops.convert_to_tensor(kernel), padding="valid", data_format="channels_last")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return *input_shape[:-1], input_shape[-1] // self.size


@keras.saving.register_keras_serializable(_PACKAGE)
class FloatSign(Affine):
    """+1 where `kernel * x + bias >= 0`, else -1, for products in floating point; of maps.

    `Sign` would become two operations between packed bits and floats, and the affine before it a third. A depthwise 1x1
    convolution with factors times 2^100 and a clamp to -1 ... 1 is a single one: nothing but 0 stays between.
    """

    def call(self, inputs: Tensor) -> Tensor:
        return ops.minimum(ops.maximum(super().call(inputs), -1.0), 1.0)

    def constants(self, kernel: np.ndarray, bias: np.ndarray) -> dict[str, Any]:
        """Returns the weights for an affine: a `bias` that moves a result of 0 to +1, both times 2^100."""
        bias = np.asarray(bias, np.float32)
        bias = np.where(bias == 0, np.float32(2.0**-90), np.nextafter(bias, np.float32(np.inf)))
        return {"kernel": np.asarray(kernel, np.float32) * _HUGE, "bias": bias * _HUGE}


@keras.saving.register_keras_serializable(_PACKAGE)
class Attention(InferenceLayer):
    """For each query six times the sum of the values whose probability is above a threshold.

    `sum over keys k of 6 [softmax(q . k / sqrt(head_dim)) > threshold] v`, of signs q, k and v: integers. (Six, because
    a clamp to 0 ... 6 comes with a convolution for nothing.) Heads are contiguous groups of channels. Queries are
    `(batch, height, width, channels)`, keys and values have fewer positions or as many.
    """

    num_heads: int

    def build(self, input_shape: Shape) -> None:
        _, (_, height, width, _), _ = input_shape
        self._build_depthwise(1, 1, height * width)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape[0]

    def call(self, inputs: Tensor) -> Tensor:
        queries, keys, values = inputs
        factor = (queries.shape[-1] // self.num_heads) ** -0.5
        if queries.shape[0] != 1:
            return self._batch(queries, keys, values, factor)
        # One image, as phones run it: a product of two matrices is one operation, and moving the heads' axis is none.
        return self._head_by_head(queries, keys, values, factor)

    def _batch(self, queries, keys, values, factor):
        heads, channels = self.num_heads, queries.shape[-1]

        def split(x):
            x = ops.reshape(x, (-1, x.shape[1] * x.shape[2], heads, channels // heads))
            return ops.transpose(x, (0, 2, 1, 3))

        scores = ops.matmul(split(queries), ops.swapaxes(split(keys), -1, -2))
        outputs = ops.matmul(self._bits(scores * factor), split(values))
        return ops.reshape(ops.transpose(outputs, (0, 2, 1, 3)), (-1, *queries.shape[1:]))

    def _head_by_head(self, queries, keys, values, factor):
        heads, channels = self.num_heads, queries.shape[-1]
        # On the keys, of which there are fewest, if that is exact.
        keys_factor, factor = (factor, None) if np.frexp(factor)[0] == 0.5 else (1.0, factor)

        def split(x, axis):
            return ops.split(x, heads, axis=axis) if heads > 1 else [x]

        keys = split(ops.reshape(keys * keys_factor, (-1, channels)), 1)
        values = split(ops.transpose(ops.reshape(values, (-1, channels))), 0)
        scores = [_product(q, k) for q, k in zip(split(queries, -1), keys, strict=True)]
        # The probabilities of more than two heads together are fewer operations.
        scores = [ops.concatenate(scores, axis=0)] if heads > 2 else scores
        bits = [self._bits(s if factor is None else s * factor) for s in scores]
        bits = split(bits[0], 0) if heads > 2 else bits
        outputs = [_product(b, v) for b, v in zip(bits, values, strict=True)]
        return ops.concatenate(outputs, axis=-1) if heads > 1 else outputs[0]

    def _bits(self, scores):
        """Returns 6 where the probability is above the threshold, else 0."""
        return ops.relu6(self._depthwise(ops.softmax(scores)))

    def constants(self, threshold: float) -> dict[str, Any]:
        return {"kernel": _HUGE, "bias": -np.float32(threshold) * _HUGE}


def _product(x, weights):
    """Returns `x . weights^T` for each position of one image: `(1, h, w, n)` and `(m, n)` give `(1, h, w, m)`."""
    outputs = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), ops.transpose(weights))
    return ops.reshape(outputs, (1, *x.shape[1:3], -1))
