"""The layers of a frozen model: what is left of binary layers when nothing is to be trained.

Each is one operation, or very few, of the Larq Compute Engine's converter; their weights are constants that `freeze`
sets. All compute in float32.
"""

import math
from collections.abc import Sequence
from typing import Any

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
    """A layer of constants, in float32."""

    def __init__(self, **kwargs: Any):
        kwargs["dtype"] = "float32"
        kwargs["trainable"] = False
        super().__init__(**kwargs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def _constant(self, name, shape):
        return self.add_weight(name=name, shape=shape, initializer="zeros", trainable=False)


class SizedLayer(InferenceLayer):
    """A layer with one argument, `size`."""

    def __init__(self, size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.size = size

    def get_config(self) -> dict:
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable(_PACKAGE)
class Sign(InferenceLayer):
    """+1 where x >= 0, else -1; written as the LCE converter recognizes it."""

    def call(self, inputs: Tensor) -> Tensor:
        return composite.signs(self, inputs) if composite.writes(lce=True) else ops.where(inputs >= 0, 1.0, -1.0)


@keras.saving.register_keras_serializable(_PACKAGE)
class Quantize(InferenceLayer):
    """A quantizer that isn't a sign, applied to activations.

    Args:
        quantizer: Whatever `quantizers.get` takes.
    """

    def __init__(self, quantizer: QuantizerLike, **kwargs: Any):
        super().__init__(**kwargs)
        self.quantizer: Any = quantizers.get(quantizer)

    def call(self, inputs: Tensor) -> Tensor:
        return self.quantizer(inputs)

    def get_config(self) -> dict:
        return {**super().get_config(), "quantizer": quantizers.serialize(self.quantizer)}


@keras.saving.register_keras_serializable(_PACKAGE)
class Pad(InferenceLayer):
    """Puts a value around maps.

    Args:
        paddings: `((top, bottom), (left, right))`.
        value: The value.

    Shapes: `(batch, height, width, channels)` gives `(batch, top + height + bottom, left + width + right, channels)`.
    """

    def __init__(self, paddings: Sequence[tuple[int, int]], value: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.paddings = tuple(map(tuple, paddings))
        self.value = value

    def call(self, inputs: Tensor) -> Tensor:
        return ops.pad(inputs, ((0, 0), *self.paddings, (0, 0)), constant_values=self.value)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *sides, channels = input_shape
        padded = (side and side + sum(around) for side, around in zip(sides, self.paddings, strict=True))
        return batch, *padded, channels

    def get_config(self) -> dict:
        return {**super().get_config(), "paddings": self.paddings, "value": self.value}


@keras.saving.register_keras_serializable(_PACKAGE)
class Convolution(InferenceLayer):
    """A convolution of maps; a binary one holds +-1 and a scale for each filter.

    Args:
        filters: Channels of the output.
        kernel_size: `(height, width)`.
        strides: `(height, width)`.
        padding: `"valid"` or `"same"`.
        pad_values: What "same" pads with.
        dilation_rate: `(height, width)`.
        groups: Groups of channels that are convolved apart.
        binary: Whether inputs and kernel are +-1.

    Shapes: `(batch, height, width, channels)` gives `(batch, new_height, new_width, filters)`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: tuple[int, int] = (1, 1),
        strides: tuple[int, int] = (1, 1),
        padding: str = "valid",
        pad_values: float = 0.0,
        dilation_rate: tuple[int, int] = (1, 1),
        groups: int = 1,
        binary: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.options: dict[str, Any] = {
            "filters": filters,
            "kernel_size": tuple(kernel_size),
            "strides": tuple(strides),
            "padding": padding,
            "pad_values": pad_values,
            "dilation_rate": tuple(dilation_rate),
            "groups": groups,
            "binary": binary,
        }
        self.is_binary = binary

    def build(self, input_shape: Shape) -> None:
        filters = self.options["filters"]
        channels = input_shape[-1] // self.options["groups"]
        self.kernel = self._constant("kernel", (*self.options["kernel_size"], channels, filters))
        if self.is_binary:
            self.scale = self._constant("scale", (filters,))
        self.bias = self._constant("bias", (filters,))

    def call(self, inputs: Tensor) -> Tensor:
        if self.is_binary and composite.writes(lce=True):
            return self._written(inputs)
        padding = self.options["padding"]
        if padding == "same" and self.options["pad_values"] != 0:
            inputs = ops.pad(inputs, self._paddings(ops.shape(inputs)), constant_values=self.options["pad_values"])
            padding = "valid"
        outputs = ops.conv(
            inputs,
            self.kernel,
            self.options["strides"],
            padding,
            data_format="channels_last",
            dilation_rate=self.options["dilation_rate"],
        )
        return outputs * self.scale + self.bias if self.is_binary else outputs + self.bias

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *sides, _ = input_shape
        axes = zip(sides, *(self.options[name] for name in ("kernel_size", "strides", "dilation_rate")), strict=True)
        return batch, *(self._output_side(*axis) for axis in axes), self.options["filters"]

    def _output_side(self, side, kernel_size, stride, dilation):
        if side is None:
            return None
        if self.options["padding"] == "valid":
            side -= (kernel_size - 1) * dilation
        return -(-side // stride)

    def _written(self, signs):
        import tensorflow as tf

        with tf.init_scope():  # where variables have values
            kernel, scale, bias = (ops.convert_to_numpy(variable) for variable in (self.kernel, self.scale, self.bias))
        height, width, _, filters = kernel.shape
        filter_bits = composite.pack(kernel).reshape(filters, height, width, -1)
        valid = self.options["padding"] == "valid"
        strides, dilation = self.options["strides"], self.options["dilation_rate"]
        return composite.operator(
            self,
            "LceBconv2d",
            self.compute_output_shape(tuple(signs.shape)),
            "float32",
            *(composite.bits_of(signs), filter_bits, scale, bias),
            channels_in=signs.shape[-1],
            dilation_height_factor=dilation[0],
            dilation_width_factor=dilation[1],
            fused_activation_function=0,
            pad_values=0 if valid else int(self.options["pad_values"]),
            padding=1 if valid else 0,
            stride_height=strides[0],
            stride_width=strides[1],
        )

    def _paddings(self, shape):
        sizes = (shape[1:3], self.options["kernel_size"], self.options["strides"], self.options["dilation_rate"])
        return ((0, 0), *(same_padding(*axis) for axis in zip(*sizes, strict=True)), (0, 0))

    def get_config(self) -> dict:
        return {**super().get_config(), **self.options}


@keras.saving.register_keras_serializable(_PACKAGE)
class Dense(InferenceLayer):
    """A real dense layer: `x . kernel + bias`.

    Args:
        units: Size of the last axis of the output.
    """

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape: Shape) -> None:
        self.kernel = self._constant("kernel", (input_shape[-1], self.units))
        self.bias = self._constant("bias", (self.units,))

    def call(self, inputs: Tensor) -> Tensor:
        return ops.matmul(inputs, self.kernel) + self.bias

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return *input_shape[:-1], self.units

    def get_config(self) -> dict:
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(_PACKAGE)
class DepthwiseConvolution(InferenceLayer):
    """A convolution of each channel with a kernel of its own, stride 1, zeros around the map.

    Args:
        kernel_size: `(height, width)`.

    Shapes: `(batch, height, width, channels)`, and the same comes out.
    """

    def __init__(self, kernel_size: tuple[int, int], **kwargs: Any):
        super().__init__(**kwargs)
        self.kernel_size = tuple(kernel_size)

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        self.kernel = self._constant("kernel", (*self.kernel_size, channels, 1))
        self.bias = self._constant("bias", (channels,))

    def call(self, inputs: Tensor) -> Tensor:
        outputs = ops.depthwise_conv(inputs, self.kernel, 1, "same", data_format="channels_last")
        return outputs + self.bias

    def get_config(self) -> dict:
        return {**super().get_config(), "kernel_size": self.kernel_size}


@keras.saving.register_keras_serializable(_PACKAGE)
class Affine(InferenceLayer):
    """`kernel * x + bias` for each channel. On maps one depthwise 1x1 convolution: one pass over memory, not two."""

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        self.kernel = self._constant("kernel", (1, 1, channels, 1))
        self.bias = self._constant("bias", (channels,))

    def call(self, inputs: Tensor) -> Tensor:
        if len(inputs.shape) != 4:
            return inputs * ops.reshape(self.kernel, (-1,)) + self.bias
        return ops.depthwise_conv(inputs, self.kernel, 1, "valid", data_format="channels_last") + self.bias


@keras.saving.register_keras_serializable(_PACKAGE)
class AddConstant(InferenceLayer):
    """`x + constant`.

    Args:
        constant_shape: Of the constant: `(channels,)`, or that of a whole map.
    """

    def __init__(self, constant_shape: tuple[int, ...], **kwargs: Any):
        super().__init__(**kwargs)
        self.constant_shape = tuple(constant_shape)

    def build(self, input_shape: Shape) -> None:
        self.constant = self._constant("constant", self.constant_shape)

    def call(self, inputs: Tensor) -> Tensor:
        return inputs + self.constant

    def get_config(self) -> dict:
        return {**super().get_config(), "constant_shape": self.constant_shape}


@keras.saving.register_keras_serializable(_PACKAGE)
class AddInFront(AddConstant):
    """Adds a constant to the first columns of maps with two columns or more.

    In two parts, always: LCE's converter takes any constant that is added to a whole binary convolution for its bias.

    Args:
        constant_shape: `(columns, channels)`.
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
class AveragePooling(SizedLayer):
    """The mean over squares that don't overlap.

    Args:
        size: Side of a square.
    """

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
class Upsampling(SizedLayer):
    """Repeats each position over a square.

    Args:
        size: Side of a square.
    """

    def call(self, inputs: Tensor) -> Tensor:
        _, height, width, _ = inputs.shape
        size = (height * self.size, width * self.size)
        return ops.image.resize(inputs, size, interpolation="nearest", data_format="channels_last")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, channels = input_shape
        return batch, height * self.size, width * self.size, channels


@keras.saving.register_keras_serializable(_PACKAGE)
class Tile(InferenceLayer):
    """Whole copies of all channels, side by side.

    Args:
        copies: How many.
    """

    def __init__(self, copies: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.copies = copies

    def call(self, inputs: Tensor) -> Tensor:
        return ops.tile(inputs, (1,) * (len(inputs.shape) - 1) + (self.copies,))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return *input_shape[:-1], input_shape[-1] * self.copies

    def get_config(self) -> dict:
        return {**super().get_config(), "copies": self.copies}


@keras.saving.register_keras_serializable(_PACKAGE)
class GroupMean(SizedLayer):
    """The mean of adjacent channels of a map, as a grouped convolution: it needs no reshape.

    Args:
        size: Channels in a group.
    """

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
class FloatSign(InferenceLayer):
    """+1 where `kernel * x + bias >= 0`, else -1, for products in floating point; of maps.

    `Sign` would become two operations between packed bits and floats, and the affine before it a third. A depthwise 1x1
    convolution with factors times 2^100 and a clamp to -1 ... 1 is a single one: nothing but 0 stays between.
    """

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        self.kernel = self._constant("kernel", (1, 1, channels, 1))
        self.bias = self._constant("bias", (channels,))

    def call(self, inputs: Tensor) -> Tensor:
        outputs = ops.depthwise_conv(inputs, self.kernel, 1, "valid", data_format="channels_last")
        return ops.minimum(ops.maximum(outputs + self.bias, -1.0), 1.0)

    @staticmethod
    def constants(kernel: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the layer's constants for an affine: a `bias` that moves a result of 0 to +1, both times 2^100."""
        bias = np.asarray(bias, np.float32)
        bias = np.where(bias == 0, np.float32(2.0**-90), np.nextafter(bias, np.float32(np.inf)))
        return {"kernel": np.asarray(kernel, np.float32) * _HUGE, "bias": bias * _HUGE}


@keras.saving.register_keras_serializable(_PACKAGE)
class Attention(InferenceLayer):
    """For each query six times the sum of the values whose probability is above a threshold.

    `sum over keys k of 6 [softmax(q . k / sqrt(head_dim)) > threshold] v`, of signs q, k and v: integers. (Six, because
    a clamp to 0 ... 6 comes with a convolution for nothing.)

    Args:
        num_heads: Heads are contiguous groups of channels.

    Shapes: queries `(batch, height, width, channels)`, keys and values with fewer positions or as many; the queries'
    shape comes out.
    """

    def __init__(self, num_heads: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, input_shape: Shape) -> None:
        _, keys_shape, _ = input_shape
        keys = keys_shape[1] * keys_shape[2]
        self.kernel = self._constant("kernel", (1, 1, keys, 1))
        self.bias = self._constant("bias", (keys,))

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
        outputs = ops.depthwise_conv(ops.softmax(scores), self.kernel, 1, "valid", data_format="channels_last")
        return ops.relu6(outputs + self.bias)

    @staticmethod
    def constants(threshold: float) -> dict[str, np.float32]:
        """Returns the layer's constants for a threshold."""
        return {"kernel": _HUGE, "bias": -np.float32(threshold) * _HUGE}

    def get_config(self) -> dict:
        return {**super().get_config(), "num_heads": self.num_heads}


def _product(x, weights):
    """Returns `x . weights^T` for each position of one image: `(1, h, w, n)` and `(m, n)` give `(1, h, w, m)`."""
    outputs = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), ops.transpose(weights))
    return ops.reshape(outputs, (1, *x.shape[1:3], -1))
