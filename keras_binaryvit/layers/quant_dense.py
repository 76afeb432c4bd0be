"""QuantDense and QuantConv2D: the only layers that own binarised kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_binaryvit import constraints, quantizers
from keras_binaryvit.typing import QuantizerLike, Tensor


class _QuantizedKernel(keras.layers.Layer):
    """What both layers share: quantisers before a product, and how the product of their values is computed."""

    def _set_quantizers(self, input_quantizer, kernel_quantizer):
        self.input_quantizer = quantizers.get(input_quantizer)
        self.kernel_quantizer = quantizers.get(kernel_quantizer)

    @property
    def is_binary(self) -> bool:
        """Whether the layer multiplies 1-bit values with 1-bit kernels."""
        return quantizers.is_one_bit(self.input_quantizer) and quantizers.is_one_bit(self.kernel_quantizer)

    def add_weight(self, *args, name=None, **kwargs):
        if name == "kernel" and self.kernel_quantizer is not None:
            # Mixed precision must not round a latent kernel: its small values are what training accumulates in.
            kwargs["autocast"] = False
        weight = super().add_weight(*args, name=name, **kwargs)
        if name == "kernel":
            weight.precision = getattr(self.kernel_quantizer, "precision", None)  # for optimisers, as in Larq
        return weight

    def quantized_kernel(self) -> tuple[Tensor, Tensor | None]:
        """Returns `(values, scale)`: what the product is taken with, and the factor of each unit or `None`."""
        if self.kernel_quantizer is None:
            return self.kernel, None
        if isinstance(self.kernel_quantizer, quantizers.Quantizer):
            return self.kernel_quantizer.decompose(self.kernel)
        return self.kernel_quantizer(self.kernel), None

    def _quantized_product(self, product, inputs):
        if self.input_quantizer is not None:
            inputs = self.input_quantizer(inputs)
        kernel, scale = self.quantized_kernel()
        # float32 sums +-1 exactly in any order; float16 or bfloat16 would not, so a mixed policy doesn't reach here.
        dtype = "float32" if self.is_binary else self.compute_dtype
        outputs = product(ops.cast(inputs, dtype), ops.cast(kernel, dtype))
        if scale is not None:
            if getattr(self, "data_format", None) == "channels_first":
                scale = ops.reshape(scale, (-1, 1, 1))
            outputs = outputs * ops.cast(scale, dtype)
        return ops.cast(outputs, self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "input_quantizer": quantizers.serialize(self.input_quantizer),
            "kernel_quantizer": quantizers.serialize(self.kernel_quantizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
        }


def _matmul(inputs, kernel):
    # As one matrix: with more axes XLA writes a transposed copy of the gradient, which takes longer than the products.
    shape = ops.shape(inputs)
    outputs = ops.matmul(ops.reshape(inputs, (-1, shape[-1])), kernel)
    return ops.reshape(outputs, (*shape[:-1], kernel.shape[-1]))


@keras.saving.register_keras_serializable("keras_binaryvit")
class QuantDense(_QuantizedKernel, keras.layers.Dense):
    """A dense layer with quantised inputs and kernel: `activation(q_in(x) . q_k(kernel) + bias)`.

    Larq's layer for Keras 3. With one-bit quantisers the product is a sum of +-1, exact on every backend and under
    every dtype policy; a kernel quantiser's scale multiplies the sum.

    Args:
        units: Size of the last axis of the output.
        activation: As in `keras.layers.Dense`.
        use_bias: As in `keras.layers.Dense`.
        input_quantizer: Applied to the inputs: whatever `quantizers.get` takes.
        kernel_quantizer: Applied to the kernel: whatever `quantizers.get` takes.
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
        self._set_quantizers(input_quantizer, kernel_quantizer)
        super().__init__(
            units,
            activation=activation,
            use_bias=use_bias,
            kernel_constraint=constraints.get(kernel_constraint),
            **kwargs,
        )

    def call(self, inputs: Tensor) -> Tensor:
        outputs = self._quantized_product(_matmul, inputs)
        if self.use_bias:
            outputs = outputs + self.bias
        return outputs if self.activation is None else self.activation(outputs)


@keras.saving.register_keras_serializable("keras_binaryvit")
class QuantConv2D(_QuantizedKernel, keras.layers.Conv2D):
    """A 2D convolution with quantised inputs and kernel, Larq's layer for Keras 3.

    Args:
        filters: Number of output channels.
        kernel_size: One integer or `(height, width)`.
        strides: As in `keras.layers.Conv2D`.
        padding: `"valid"` or `"same"`.
        pad_values: What `"same"` pads the quantised inputs with; 1 or -1 keeps a binary convolution binary at the
            border, 0 does not.
        data_format: As in `keras.layers.Conv2D`.
        dilation_rate: As in `keras.layers.Conv2D`.
        groups: As in `keras.layers.Conv2D`.
        activation: As in `keras.layers.Conv2D`.
        use_bias: As in `keras.layers.Conv2D`.
        input_quantizer: Applied to the inputs: whatever `quantizers.get` takes.
        kernel_quantizer: Applied to the kernel: whatever `quantizers.get` takes.
        kernel_constraint: As in `keras.layers.Conv2D`, or `"weight_clip"`.
        **kwargs: The other arguments of `keras.layers.Conv2D`.

    Shapes: `(batch, height, width, channels)` gives `(batch, new_height, new_width, filters)`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: str = "valid",
        pad_values: float = 0.0,
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = (1, 1),
        groups: int = 1,
        activation: str | Callable | None = None,
        use_bias: bool = True,
        input_quantizer: QuantizerLike = None,
        kernel_quantizer: QuantizerLike = None,
        kernel_constraint: str | dict | Callable | None = None,
        **kwargs: Any,
    ):
        self._set_quantizers(input_quantizer, kernel_quantizer)
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            kernel_constraint=constraints.get(kernel_constraint),
            **kwargs,
        )
        self.pad_values = pad_values

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns the convolution of `inputs` with `kernel`, both already quantised."""
        padding = self.padding
        if padding == "same" and self.pad_values != 0:
            inputs = self._pad_same(inputs)
            padding = "valid"
        return ops.conv(inputs, kernel, self.strides, padding, self.data_format, self.dilation_rate)

    def _pad_same(self, inputs):
        spatial = slice(1, 3) if self.data_format == "channels_last" else slice(2, 4)
        paddings = [(0, 0)] * 4
        paddings[spatial] = [
            same_padding(*sizes)
            for sizes in zip(
                ops.shape(inputs)[spatial], self.kernel_size, self.strides, self.dilation_rate, strict=True
            )
        ]
        return ops.pad(inputs, paddings, constant_values=self.pad_values)

    def call(self, inputs: Tensor) -> Tensor:
        outputs = self._quantized_product(self.convolution_op, inputs)
        if self.use_bias:
            bias_shape = (1, 1, 1, -1) if self.data_format == "channels_last" else (1, -1, 1, 1)
            outputs = outputs + ops.reshape(self.bias, bias_shape)
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self) -> dict:
        return {**super().get_config(), "pad_values": self.pad_values}


def same_padding(size: Any, kernel_size: int, stride: int, dilation: int) -> tuple[Any, Any]:
    """Returns the values before and after a spatial axis that make `ceil(size / stride)` windows fit."""
    needed = (-(-size // stride) - 1) * stride + (kernel_size - 1) * dilation + 1
    total = max(needed - size, 0) if isinstance(size, int) else ops.maximum(needed - size, 0)
    return total // 2, total - total // 2
