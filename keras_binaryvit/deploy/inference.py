"""The layers of a frozen model: what is left of binary layers when nothing is to be trained.

Each is one operation, or very few, of the Larq Compute Engine's converter; their weights are constants that `freeze`
sets. All compute in float32.
"""

import keras
import numpy as np
from keras import ops

from keras_binaryvit import quantizers
from keras_binaryvit.layers.quant_dense import same_padding

_PACKAGE = "keras_binaryvit"


class InferenceLayer(keras.layers.Layer):
    """A layer of constants, in float32."""

    def __init__(self, **kwargs):
        kwargs["dtype"] = "float32"
        kwargs["trainable"] = False
        super().__init__(**kwargs)

    def _constant(self, name, shape):
        return self.add_weight(name=name, shape=shape, initializer="zeros", trainable=False)


@keras.saving.register_keras_serializable(_PACKAGE)
class Sign(InferenceLayer):
    """+1 where x >= 0, else -1; written as the LCE converter recognises it."""

    def call(self, inputs):
        return ops.where(inputs >= 0, 1.0, -1.0)


@keras.saving.register_keras_serializable(_PACKAGE)
class Quantize(InferenceLayer):
    """A quantiser that isn't a sign, applied to activations.

    Args:
        quantizer: Whatever `quantizers.get` takes.
    """

    def __init__(self, quantizer, **kwargs):
        super().__init__(**kwargs)
        self.quantizer = quantizers.get(quantizer)

    def call(self, inputs):
        return self.quantizer(inputs)

    def get_config(self):
        return {**super().get_config(), "quantizer": quantizers.serialize(self.quantizer)}


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
        filters,
        kernel_size=(1, 1),
        strides=(1, 1),
        padding="valid",
        pad_values=0.0,
        dilation_rate=(1, 1),
        groups=1,
        binary=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.options = {
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

    def build(self, input_shape):
        filters = self.options["filters"]
        channels = input_shape[-1] // self.options["groups"]
        self.kernel = self._constant("kernel", (*self.options["kernel_size"], channels, filters))
        if self.is_binary:
            self.scale = self._constant("scale", (filters,))
        self.bias = self._constant("bias", (filters,))

    def call(self, inputs):
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

    def _paddings(self, shape):
        sizes = (shape[1:3], self.options["kernel_size"], self.options["strides"], self.options["dilation_rate"])
        return ((0, 0), *(same_padding(*axis) for axis in zip(*sizes, strict=True)), (0, 0))

    def get_config(self):
        return {**super().get_config(), **self.options}


@keras.saving.register_keras_serializable(_PACKAGE)
class Dense(InferenceLayer):
    """A real dense layer: `x . kernel + bias`.

    Args:
        units: Size of the last axis of the output.
    """

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.kernel = self._constant("kernel", (input_shape[-1], self.units))
        self.bias = self._constant("bias", (self.units,))

    def call(self, inputs):
        return ops.matmul(inputs, self.kernel) + self.bias

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(_PACKAGE)
class DepthwiseConvolution(InferenceLayer):
    """A convolution of each channel with a kernel of its own, stride 1, zeros around the map.

    Args:
        kernel_size: `(height, width)`.

    Shapes: `(batch, height, width, channels)`, and the same comes out.
    """

    def __init__(self, kernel_size, **kwargs):
        super().__init__(**kwargs)
        self.kernel_size = tuple(kernel_size)

    def build(self, input_shape):
        channels = input_shape[-1]
        self.kernel = self._constant("kernel", (*self.kernel_size, channels, 1))
        self.bias = self._constant("bias", (channels,))

    def call(self, inputs):
        outputs = ops.depthwise_conv(inputs, self.kernel, 1, "same", data_format="channels_last")
        return outputs + self.bias

    def get_config(self):
        return {**super().get_config(), "kernel_size": self.kernel_size}


@keras.saving.register_keras_serializable(_PACKAGE)
class Affine(InferenceLayer):
    """`kernel * x + bias` for each channel. On maps one depthwise 1x1 convolution: one pass over memory, not two."""

    def build(self, input_shape):
        channels = input_shape[-1]
        self.kernel = self._constant("kernel", (1, 1, channels, 1))
        self.bias = self._constant("bias", (channels,))

    def call(self, inputs):
        if len(inputs.shape) != 4:
            return inputs * ops.reshape(self.kernel, (-1,)) + self.bias
        return ops.depthwise_conv(inputs, self.kernel, 1, "valid", data_format="channels_last") + self.bias


@keras.saving.register_keras_serializable(_PACKAGE)
class AddConstant(InferenceLayer):
    """`x + constant`.

    Args:
        constant_shape: Of the constant: `(channels,)`, or that of a whole map.
    """

    def __init__(self, constant_shape, **kwargs):
        super().__init__(**kwargs)
        self.constant_shape = tuple(constant_shape)

    def build(self, input_shape):
        self.constant = self._constant("constant", self.constant_shape)

    def call(self, inputs):
        return inputs + self.constant

    def get_config(self):
        return {**super().get_config(), "constant_shape": self.constant_shape}


@keras.saving.register_keras_serializable(_PACKAGE)
class PReLU(InferenceLayer):
    """x where x > 0, else slope * x; written as the LCE converter recognises it."""

    def build(self, input_shape):
        shape = (1,) * max(len(input_shape) - 2, 0) + (input_shape[-1],)
        self.negative_slope = self._constant("negative_slope", shape)

    def call(self, inputs):
        return ops.relu(inputs) + self.negative_slope * ops.relu(-inputs)


@keras.saving.register_keras_serializable(_PACKAGE)
class Add(InferenceLayer):
    """The sum of two tensors."""

    def call(self, inputs):
        first, second = inputs
        return first + second


@keras.saving.register_keras_serializable(_PACKAGE)
class AveragePooling(InferenceLayer):
    """The mean over squares that don't overlap.

    Args:
        size: Side of a square.
    """

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, inputs):
        return ops.average_pool(inputs, self.size, self.size, "valid", data_format="channels_last")

    def get_config(self):
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable(_PACKAGE)
class GlobalAveragePooling(InferenceLayer):
    """The mean over all positions of a map."""

    def call(self, inputs):
        return ops.mean(inputs, axis=(1, 2))


@keras.saving.register_keras_serializable(_PACKAGE)
class Upsampling(InferenceLayer):
    """Repeats each position over a square.

    Args:
        size: Side of a square.
    """

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, inputs):
        _, height, width, _ = inputs.shape
        size = (height * self.size, width * self.size)
        return ops.image.resize(inputs, size, interpolation="nearest", data_format="channels_last")

    def get_config(self):
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable(_PACKAGE)
class Tile(InferenceLayer):
    """Whole copies of all channels, side by side.

    Args:
        copies: How many.
    """

    def __init__(self, copies, **kwargs):
        super().__init__(**kwargs)
        self.copies = copies

    def call(self, inputs):
        return ops.tile(inputs, (1,) * (len(inputs.shape) - 1) + (self.copies,))

    def get_config(self):
        return {**super().get_config(), "copies": self.copies}


@keras.saving.register_keras_serializable(_PACKAGE)
class GroupMean(InferenceLayer):
    """The mean of adjacent channels.

    Args:
        size: Channels in a group.
    """

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, inputs):
        *leading, channels = ops.shape(inputs)
        return ops.mean(ops.reshape(inputs, (*leading, channels // self.size, self.size)), axis=-1)

    def get_config(self):
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable(_PACKAGE)
class Attention(InferenceLayer):
    """For each query the sum of the values whose probability is above a threshold.

    `sum over keys k of [softmax(q . k / sqrt(head_dim)) > threshold] v`, of signs q, k and v: integers.

    Args:
        num_heads: Heads are contiguous groups of channels.

    Shapes: queries `(batch, height, width, channels)`, keys and values with fewer positions or as many; the queries'
    shape comes out.
    """

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, input_shape):
        self.threshold = self._constant("threshold", ())

    def call(self, inputs):
        queries, keys, values = inputs
        channels = queries.shape[-1]
        factor = (channels // self.num_heads) ** -0.5
        # On the keys, of which there are fewest, where that is exact.
        exact = np.frexp(factor)[0] == 0.5

        def heads(x):
            return ops.split(ops.reshape(x, (-1, x.shape[1] * x.shape[2], channels)), self.num_heads, axis=-1)

        outputs = []
        for q, k, v in zip(heads(queries), heads(keys * factor if exact else keys), heads(values), strict=True):
            scores = ops.matmul(q, ops.transpose(k, (0, 2, 1)))
            scores = scores if exact else scores * factor
            # 1 above the threshold and 0 at or below it, in operations that every runtime has fast kernels for.
            bits = ops.ceil(ops.relu(ops.softmax(scores, axis=-1) - self.threshold))
            outputs.append(ops.matmul(bits, v))
        return ops.reshape(ops.concatenate(outputs, axis=-1), (-1, *queries.shape[1:]))

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads}
