"""BinarySelfAttention: multi-head self-attention over the positions of a map, with 1-bit q, k, v and probabilities."""

from typing import Any

import keras
from keras import ops

from keras_binaryvit import quantizers
from keras_binaryvit.layers.activation import RPReLU, Shift
from keras_binaryvit.layers.binary_kernels import BinaryKernels
from keras_binaryvit.layers.normalization import BatchNorm
from keras_binaryvit.layers.pooling import average_pool
from keras_binaryvit.layers.projection import BinaryProjection
from keras_binaryvit.layers.validation import map_shape, positive_integer, with_known_sides
from keras_binaryvit.typing import QuantizerLike, Shape, Tensor


@keras.saving.register_keras_serializable("keras_binaryvit")
class BinarySelfAttention(BinaryKernels):
    """Self-attention whose products are all binary, with spatial reduction of the keys and values.

    With P a `BinaryProjection`, h the inputs and r the reduction:

        g = P(AvgPool_r(h)) if r > 1 else h;   q = P(h), k = P(g), v = P(g)
        p = softmax(sign(q + mq) . sign(k + mk) / sqrt(head_dim)),   a = {0, clip}(p),   o = a . sign(v + mv)
        P(RPReLU(BN(o) + q + up(k) + up(v))),   up: each reduced position to its r x r positions

    Scores and sums over keys are integers, computed in float32 under every dtype policy.

    Args:
        num_heads: Heads are contiguous groups of channels; must divide them.
        reduction: Side of the squares of positions that share a key and a value; must divide the map's sides.
        input_quantizer: Of the projections' inputs and of q, k and v: whatever `quantizers.get` takes.
        kernel_quantizer: Of the projections' kernels: whatever `quantizers.get` takes.
        binary_probabilities: Whether the probabilities p become a; without, and without quantizers, this is a real
            attention of the same shape, to compare with.
        **kwargs: `kernel_initializer`, `kernel_regularizer` and `kernel_constraint`, as in `BinaryKernels`, and the
            arguments of `keras.layers.Layer`.

    Shapes: `(batch, height, width, channels)`, and the same comes out; with `return_attention_scores=True` also a, the
    binarized probabilities, `(batch, heads, height * width, height * width / reduction ** 2)`.

    Raises:
        ValueError: The heads don't divide the channels, or the reduction the map.

    Source: BinaryViT, arXiv 2306.16678, sections 2 and 3, and the authors' code.
    """

    def __init__(
        self,
        num_heads: int = 1,
        reduction: int = 1,
        input_quantizer: QuantizerLike = "approx_sign",
        kernel_quantizer: QuantizerLike = "centered_scaled_sign",
        binary_probabilities: bool = True,
        **kwargs: Any,
    ):
        super().__init__(input_quantizer, kernel_quantizer, **kwargs)
        self.binary_probabilities = binary_probabilities
        self.num_heads = positive_integer("num_heads", num_heads)
        self.reduction = positive_integer("reduction", reduction)

    def build(self, input_shape: Shape) -> None:
        self._shape = height, width, channels = map_shape(self, input_shape)
        if channels % self.num_heads:
            raise ValueError(
                f"num_heads must divide the channels. Received: num_heads={self.num_heads}, channels={channels}"
            )
        if height % self.reduction or width % self.reduction:
            raise ValueError(
                "reduction must divide the height and width of the map. "
                f"Received: reduction={self.reduction}, map {height}x{width}"
            )

        def projection(name):
            return BinaryProjection(channels, **self.kernel_arguments(), name=name)

        self.query, self.key, self.value = projection("query"), projection("key"), projection("value")
        self.output_projection = projection("output")
        projections = [self.query, self.key, self.value, self.output_projection]
        if self.reduction > 1:
            self.reduced = projection("reduced")
            projections.append(self.reduced)
        self.query_shift = Shift(dtype=self.dtype_policy, name="query_shift")
        self.key_shift = Shift(dtype=self.dtype_policy, name="key_shift")
        self.value_shift = Shift(dtype=self.dtype_policy, name="value_shift")
        if self.binary_probabilities:
            self.binarizer = quantizers.ElasticBinarizer(dtype="float32", name="binarizer")
            self.binarizer.build(())
        self.context_norm = BatchNorm(dtype=self.dtype_policy, name="context_norm")
        self.context_activation = RPReLU(dtype=self.dtype_policy, name="context_activation")

        for layer in (
            *projections,
            self.query_shift,
            self.key_shift,
            self.value_shift,
            self.context_norm,
            self.context_activation,
        ):
            layer.build(input_shape)

    def call(
        self, inputs: Tensor, training: bool | None = None, return_attention_scores: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        context, attention = self.context(inputs, training=training)
        outputs = self.output_projection(context, training=training)
        return (outputs, attention) if return_attention_scores else outputs

    def context(self, inputs: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Returns what the output projection reads, in the inputs' shape, and the binarized probabilities."""
        inputs = with_known_sides(inputs, self._shape)
        _, height, width, channels = inputs.shape
        keys_from = inputs
        if self.reduction > 1:
            keys_from = self.reduced(average_pool(inputs, self.reduction), training=training)
        query = self.query(inputs, training=training)
        key = self.key(keys_from, training=training)
        value = self.value(keys_from, training=training)

        probabilities = self.probabilities(query, key)
        # The clip multiplies after the sum, which is then one of integers.
        bits, clip = self.binarizer.decompose(probabilities) if self.binary_probabilities else (probabilities, 1.0)
        summed = ops.transpose(ops.matmul(bits, self._heads(self.value_shift(value))), (0, 2, 1, 3))
        attended = ops.reshape(ops.cast(summed * clip, self.compute_dtype), (-1, height, width, channels))

        context = self.context_norm(attended, training=training) + query
        context = self.context_activation(self._add_upsampled(context, key + value))
        return context, bits * clip

    def probabilities(self, query: Tensor, key: Tensor) -> Tensor:
        """Returns the softmax of the binary scores, `(batch, heads, queries, keys)`, of the maps `query` and `key`."""
        queries, keys = self._heads(self.query_shift(query)), self._heads(self.key_shift(key))
        # Not as an einsum: XLA's comes out transposed, and every use of it transposes it back.
        scores = ops.matmul(queries, ops.transpose(keys, (0, 1, 3, 2)))
        return ops.softmax(scores / (query.shape[-1] // self.num_heads) ** 0.5, axis=-1)

    def _heads(self, x):
        """Returns the binarized map `x` as `(batch, heads, positions, head_dim)`, in float32: sums of it are exact."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        _, height, width, channels = x.shape
        shape = (-1, height * width, self.num_heads, channels // self.num_heads)
        return ops.transpose(ops.reshape(ops.cast(x, "float32"), shape), (0, 2, 1, 3))

    def _add_upsampled(self, x, reduced):
        r = self.reduction
        if r == 1:
            return x + reduced
        # A broadcast over the r x r positions of each reduced one, so that the copies are never written to memory.
        _, height, width, channels = x.shape
        squares = ops.reshape(x, (-1, r, width // r, r, channels))
        reduced = ops.reshape(reduced, (-1, 1, width // r, 1, channels))
        return ops.reshape(squares + reduced, (-1, height, width, channels))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def compute_output_spec(
        self, inputs: Tensor, training: bool | None = None, return_attention_scores: bool = False
    ) -> keras.KerasTensor | tuple[keras.KerasTensor, keras.KerasTensor]:
        outputs = keras.KerasTensor(inputs.shape, self.compute_dtype)
        if not return_attention_scores:
            return outputs
        batch, height, width, _ = inputs.shape
        positions = height * width
        shape = (batch, self.num_heads, positions, positions // self.reduction**2)
        return outputs, keras.KerasTensor(shape, "float32")

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "reduction": self.reduction,
            "binary_probabilities": self.binary_probabilities,
        }
