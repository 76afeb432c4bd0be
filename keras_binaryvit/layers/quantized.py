"""QuantDense, QuantConv1D, QuantConv2D and QuantDepthwiseConv2D: the layers that own quantized kernels."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_binaryvit import constraints, quantizers
from keras_binaryvit.typing import QuantizerLike, Tensor


class QuantizedKernel(keras.layers.Layer):
    """Quantizes the inputs and the kernel of the Keras layer that follows it among the base classes.

    `activation(product(q_in(x), q_k(kernel)) + bias)`; a layer is a class of one method, `product`.

    Args:
        *args: Those of the Keras layer.
        input_quantizer: Applied to the inputs: any identifier that `quantizers.get` accepts.
        kernel_quantizer: Applied to the kernel: any identifier that `quantizers.get` accepts.
        **kwargs: Those of the Keras layer; constraints may be `"weight_clip"`.

    Warns:
        UserWarning: When it is built, of a 1-bit kernel without a constraint: see `warns_unclipped`.
    """

    warns_unclipped = True
    """Whether to warn of a 1-bit kernel without a constraint. The layers around this one that train well without turn
    it off before they build it."""

    def __init__(
        self,
        *args: Any,
        input_quantizer: QuantizerLike = None,
        kernel_quantizer: QuantizerLike = None,
        **kwargs: Any,
    ):
        self.input_quantizer = quantizers.get(input_quantizer)
        self.kernel_quantizer = quantizers.get(kernel_quantizer)
        kwargs |= {name: constraints.get(value) for name, value in kwargs.items() if name.endswith("_constraint")}
        super().__init__(*args, **kwargs)

    @property
    def is_binary(self) -> bool:
        """Whether the layer multiplies 1-bit values with 1-bit kernels."""
        return quantizers.is_one_bit(self.input_quantizer) and quantizers.is_one_bit(self.kernel_quantizer)

    def add_weight(self, *args: Any, name: str | None = None, **kwargs: Any) -> keras.Variable:
        if name != "kernel":
            return super().add_weight(*args, name=name, **kwargs)
        if self.kernel_quantizer is not None:
            # Mixed precision must not round a latent kernel: its small values are what training accumulates in.
            kwargs["autocast"] = False
        weight = super().add_weight(*args, name=name, **kwargs)
        weight.precision = getattr(self.kernel_quantizer, "precision", None)  # for optimizers, as in Larq
        clips = getattr(self.kernel_quantizer, "clip_value", 1.0) is not None  # else every weight has a gradient
        unconstrained = quantizers.is_one_bit(self.kernel_quantizer) and clips and kwargs.get("constraint") is None
        if unconstrained and self.warns_unclipped:
            warnings.warn(
                f"The layer {self.name!r} ({type(self).__name__}) has a 1-bit kernel and no constraint on it. Weights "
                f"that grow beyond the range where {self.kernel_quantizer!r} has a gradient may never change again. "
                "Set kernel_constraint='weight_clip' (depthwise_constraint of a depthwise layer), or use a weight "
                "decay that brings them back and filter this warning.",
                stacklevel=2,
            )
        return weight

    def quantized_kernel(self) -> tuple[Tensor, Tensor | None]:
        """Returns `(values, scale)`: what the product is taken with, and the factor of each unit or `None`."""
        if self.kernel_quantizer is None:
            return self.kernel, None
        if isinstance(self.kernel_quantizer, quantizers.Quantizer):
            return self.kernel_quantizer.decompose(self.kernel)
        return self.kernel_quantizer(self.kernel), None

    def product(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns what the layer computes of `inputs` and `kernel`, both already quantized."""
        raise NotImplementedError(f"{type(self).__name__} must define product(inputs, kernel).")

    def call(self, inputs: Tensor) -> Tensor:
        if self.input_quantizer is not None:
            inputs = self.input_quantizer(inputs)
        kernel, scale = self.quantized_kernel()
        # float32 sums +-1 exactly in any order; float16 or bfloat16 would not, so a mixed policy doesn't reach here.
        dtype = "float32" if self.is_binary else self.compute_dtype
        outputs = self.product(ops.cast(inputs, dtype), ops.cast(kernel, dtype))
        if scale is not None:
            outputs = outputs * self._per_unit(ops.cast(scale, dtype))
        outputs = ops.cast(outputs, self.compute_dtype)
        if self.use_bias:
            outputs = outputs + self._per_unit(self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    def _per_unit(self, vector):
        """Returns one value for each unit in a shape that fits the outputs."""
        if getattr(self, "data_format", "channels_last") == "channels_last":
            return vector
        return ops.reshape(vector, (-1, *(1 for _ in self.kernel_size)))

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "input_quantizer": quantizers.serialize(self.input_quantizer),
            "kernel_quantizer": quantizers.serialize(self.kernel_quantizer),
        }


@keras.saving.register_keras_serializable("keras_binaryvit")
class QuantDense(QuantizedKernel, keras.layers.Dense):
    """A dense layer with quantized inputs and kernel: `activation(q_in(x) . q_k(kernel) + bias)`.

    Larq's layer for Keras 3. With one-bit quantizers the product is a sum of +-1, exact on every backend and under
    every dtype policy; a kernel quantizer's scale multiplies the sum.

    Args:
        units: Size of the last axis of the output.
        activation: As in `keras.layers.Dense`.
        use_bias: As in `keras.layers.Dense`.
        input_quantizer: Applied to the inputs: any identifier that `quantizers.get` accepts.
        kernel_quantizer: Applied to the kernel: any identifier that `quantizers.get` accepts.
        kernel_constraint: As in `keras.layers.Dense`, or `"weight_clip"`.
        **kwargs: The other arguments of `keras.layers.Dense`.

    Shapes: `(batch, ..., channels)` gives `(batch, ..., units)`.
    """

    def __init__(
        self,
        units: int,
        activation: str | Callable | None = None,
        use_bias: bool = True,
        input_quantizer: QuantizerLike = None,
        kernel_quantizer: QuantizerLike = None,
        kernel_constraint: str | dict | Callable | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            units,
            activation=activation,
            use_bias=use_bias,
            input_quantizer=input_quantizer,
            kernel_quantizer=kernel_quantizer,
            kernel_constraint=kernel_constraint,
            **kwargs,
        )

    def product(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        # As one matrix: with more axes XLA writes a transposed copy of the gradient, which takes longer than the
        # products.
        shape = ops.shape(inputs)
        outputs = ops.matmul(ops.reshape(inputs, (-1, shape[-1])), kernel)
        return ops.reshape(outputs, (*shape[:-1], kernel.shape[-1]))


class PaddedKernel(QuantizedKernel):
    """A `QuantizedKernel` that is moved over maps or sequences, with any values around them.

    Args:
        *args: Those of the Keras layer.
        pad_values: What is put around the quantized inputs.
        **kwargs: Those of `QuantizedKernel`.
    """

    def __init__(self, *args: Any, pad_values: float = 0.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.pad_values = pad_values

    def paddings(self, sides: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Returns the numbers of values before and after each spatial axis of a map with `sides`; no list of them
        where the convolution itself pads."""
        axes = zip(sides, self.kernel_size, self.strides, self.dilation_rate, strict=True)
        if self.padding == "causal":
            return [((kernel_size - 1) * dilation, 0) for _, kernel_size, _, dilation in axes]
        if self.padding == "same" and self.pad_values != 0:
            return [same_padding(*axis) for axis in axes]
        return []

    def padded(self, inputs: Tensor) -> tuple[Tensor, str]:
        """Returns the quantized `inputs` with what is put around them, and the padding that is left to do."""
        first = 1 if self.data_format == "channels_last" else 2
        spatial = slice(first, first + len(self.kernel_size))
        paddings: Any = [(0, 0)] * len(inputs.shape)
        if not (around := self.paddings(ops.shape(inputs)[spatial])):
            return inputs, self.padding
        paddings[spatial] = around
        return ops.pad(inputs, paddings, constant_values=self.pad_values), "valid"

    def get_config(self) -> dict:
        return {**super().get_config(), "pad_values": self.pad_values}


class _QuantConv(PaddedKernel):
    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str = "valid",
        pad_values: float = 0.0,
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
        groups: int = 1,
        activation: str | Callable | None = None,
        use_bias: bool = True,
        input_quantizer: QuantizerLike = None,
        kernel_quantizer: QuantizerLike = None,
        kernel_constraint: str | dict | Callable | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            pad_values=pad_values,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            input_quantizer=input_quantizer,
            kernel_quantizer=kernel_quantizer,
            kernel_constraint=kernel_constraint,
            **kwargs,
        )

    def product(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return self.convolution_op(inputs, kernel)

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns the convolution of `inputs` with `kernel`, both already quantized."""
        inputs, padding = self.padded(inputs)
        return ops.conv(inputs, kernel, self.strides, padding, self.data_format, self.dilation_rate)


@keras.saving.register_keras_serializable("keras_binaryvit")
class QuantConv1D(_QuantConv, keras.layers.Conv1D):
    """A 1D convolution with quantized inputs and kernel, Larq's layer for Keras 3.

    Args:
        filters: Number of output channels.
        kernel_size: Length of the kernel.
        strides: As in `keras.layers.Conv1D`.
        padding: `"valid"`, `"same"`, or `"causal"`: padded in front only, so that no output depends on later inputs.
        pad_values: What `"same"` and `"causal"` pad the quantized inputs with; 1 or -1 keeps a binary convolution
            binary at the border, 0 does not. (Larq pads causally with 0 only.)
        data_format: As in `keras.layers.Conv1D`.
        dilation_rate: As in `keras.layers.Conv1D`.
        groups: As in `keras.layers.Conv1D`.
        activation: As in `keras.layers.Conv1D`.
        use_bias: As in `keras.layers.Conv1D`.
        input_quantizer: Applied to the inputs: any identifier that `quantizers.get` accepts.
        kernel_quantizer: Applied to the kernel: any identifier that `quantizers.get` accepts.
        kernel_constraint: As in `keras.layers.Conv1D`, or `"weight_clip"`.
        **kwargs: The other arguments of `keras.layers.Conv1D`.

    Shapes: `(batch, steps, channels)` gives `(batch, new_steps, filters)`.
    """


@keras.saving.register_keras_serializable("keras_binaryvit")
class QuantConv2D(_QuantConv, keras.layers.Conv2D):
    """A 2D convolution with quantized inputs and kernel, Larq's layer for Keras 3.

    Args:
        filters: Number of output channels.
        kernel_size: One integer or `(height, width)`.
        strides: As in `keras.layers.Conv2D`.
        padding: `"valid"` or `"same"`.
        pad_values: What `"same"` pads the quantized inputs with; 1 or -1 keeps a binary convolution binary at the
            border, 0 does not.
        data_format: As in `keras.layers.Conv2D`.
        dilation_rate: As in `keras.layers.Conv2D`.
        groups: As in `keras.layers.Conv2D`.
        activation: As in `keras.layers.Conv2D`.
        use_bias: As in `keras.layers.Conv2D`.
        input_quantizer: Applied to the inputs: any identifier that `quantizers.get` accepts.
        kernel_quantizer: Applied to the kernel: any identifier that `quantizers.get` accepts.
        kernel_constraint: As in `keras.layers.Conv2D`, or `"weight_clip"`.
        **kwargs: The other arguments of `keras.layers.Conv2D`.

    Shapes: `(batch, height, width, channels)` gives `(batch, new_height, new_width, filters)`.
    """


@keras.saving.register_keras_serializable("keras_binaryvit")
class QuantDepthwiseConv2D(PaddedKernel, keras.layers.DepthwiseConv2D):
    """A convolution of each channel with kernels of its own, quantized inputs and kernels; Larq's layer for Keras 3.

    No interpreter has a binary product for it: a converted model computes it in float32, and takes it only without an
    input quantizer.

    Args:
        kernel_size: One integer or `(height, width)`.
        strides: As in `keras.layers.DepthwiseConv2D`.
        padding: `"valid"` or `"same"`.
        pad_values: What `"same"` pads the quantized inputs with.
        depth_multiplier: Number of kernels of each channel.
        data_format: As in `keras.layers.DepthwiseConv2D`.
        dilation_rate: As in `keras.layers.DepthwiseConv2D`.
        activation: As in `keras.layers.DepthwiseConv2D`.
        use_bias: As in `keras.layers.DepthwiseConv2D`.
        input_quantizer: Applied to the inputs: any identifier that `quantizers.get` accepts.
        depthwise_quantizer: Applied to the kernel: any identifier that `quantizers.get` accepts. One that computes a
            magnitude for each unit takes the last axis, `depth_multiplier`, for the units, as Larq does.
        depthwise_constraint: As in `keras.layers.DepthwiseConv2D`, or `"weight_clip"`.
        **kwargs: The other arguments of `keras.layers.DepthwiseConv2D`.

    Shapes: `(batch, height, width, channels)` gives `(batch, new_height, new_width, channels * depth_multiplier)`.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str = "valid",
        pad_values: float = 0.0,
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
        activation: str | Callable | None = None,
        use_bias: bool = True,
        input_quantizer: QuantizerLike = None,
        depthwise_quantizer: QuantizerLike = None,
        depthwise_constraint: str | dict | Callable | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            kernel_size,
            strides=strides,
            padding=padding,
            pad_values=pad_values,
            depth_multiplier=depth_multiplier,
            data_format=data_format,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            input_quantizer=input_quantizer,
            kernel_quantizer=depthwise_quantizer,
            depthwise_constraint=depthwise_constraint,
            **kwargs,
        )

    def quantized_kernel(self) -> tuple[Tensor, None]:
        # A scale for each unit isn't one for each output channel here: it stays in the kernel.
        return self.kernel if self.kernel_quantizer is None else self.kernel_quantizer(self.kernel), None

    def product(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        inputs, padding = self.padded(inputs)
        return ops.depthwise_conv(inputs, kernel, self.strides, padding, self.data_format, self.dilation_rate)

    def get_config(self) -> dict:
        config = super().get_config()
        config["depthwise_quantizer"] = config.pop("kernel_quantizer")
        return config


def same_padding(size: Any, kernel_size: int, stride: int, dilation: int) -> tuple[Any, Any]:
    """Returns the values before and after a spatial axis that make `ceil(size / stride)` windows fit."""
    needed = (-(-size // stride) - 1) * stride + (kernel_size - 1) * dilation + 1
    total = max(needed - size, 0) if isinstance(size, int) else ops.maximum(needed - size, 0)
    return total // 2, total - total // 2
