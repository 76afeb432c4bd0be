"""PatchEmbedding and PatchMerging: from an image to the first map, and from a map to a smaller and wider one."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_binaryvit import constraints
from keras_binaryvit.layers.activation import RPReLU, Shift
from keras_binaryvit.layers.binary_kernels import BinaryKernels, initial_kernel
from keras_binaryvit.layers.normalization import BatchNorm
from keras_binaryvit.layers.pooling import average_pool
from keras_binaryvit.layers.quantized import QuantConv2D
from keras_binaryvit.layers.validation import map_shape, positive_integer, with_known_sides
from keras_binaryvit.typing import QuantizerLike, Shape, Tensor


def _checked_shape(layer, input_shape, side):
    shape = height, width, _ = map_shape(layer, input_shape)
    if height % side or width % side:
        raise ValueError(
            f"The map's height and width must be multiples of {side}, the side of a patch of {type(layer).__name__}. "
            f"Received: map {height}x{width}"
        )
    return shape


def _add_position_embedding(layer, output_shape):
    initializer = layer.position_embedding_initializer or keras.initializers.TruncatedNormal(stddev=0.02)
    return layer.add_weight(name="position_embedding", shape=output_shape[1:], initializer=initializer)


@keras.saving.register_keras_serializable("keras_binaryvit")
class PatchEmbedding(keras.layers.Layer):
    """A real-valued convolution over patches with bias, batch normalization, and a learned position embedding.

    Args:
        embed_dim: Channels of the output.
        patch_size: Side of a patch, the stride of the convolution; must divide the image's sides.
        use_norm: Whether there is a batch normalization.
        use_class_token: Whether a learned token stands before the patches. The output is then one column of positions,
            as nothing can be a feature map with a token in it.
        kernel_initializer: Of the convolution; `None` for U(+-1 / sqrt(fan_in)), as the authors'.
        bias_initializer: Of the convolution; `None` for the same.
        kernel_regularizer: Of the convolution.
        kernel_constraint: Of the convolution.
        position_embedding_initializer: `None` for a truncated normal distribution with a deviation of 0.02.
        kernel_size: Side of the convolution's window; `None` for `patch_size`. With a larger one the patches overlap,
            and zeros surround the image.

    Shapes: `(batch, height, width, channels)` gives `(batch, height / patch_size, width / patch_size, embed_dim)`; with
    a class token `(batch, 1 + number of patches, 1, embed_dim)`, the patches row by row.

    Raises:
        ValueError: The patches don't divide the image.

    Source: BinaryViT, arXiv 2306.16678, section 3.4; without norm ViT, arXiv 2010.11929, eq. 1; overlapping patches
    PVT v2, arXiv 2106.13797, section 3.2.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_size: int = 4,
        use_norm: bool = True,
        use_class_token: bool = False,
        kernel_initializer: str | dict | Callable | None = None,
        bias_initializer: str | dict | Callable | None = None,
        kernel_regularizer: str | dict | Callable | None = None,
        kernel_constraint: str | dict | Callable | None = None,
        position_embedding_initializer: str | dict | Callable | None = None,
        kernel_size: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.embed_dim = positive_integer("embed_dim", embed_dim)
        self.patch_size = positive_integer("patch_size", patch_size)
        self.kernel_size = self.patch_size if kernel_size is None else positive_integer("kernel_size", kernel_size)
        self.use_norm = use_norm
        self.use_class_token = use_class_token
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.position_embedding_initializer = keras.initializers.get(position_embedding_initializer)

    def build(self, input_shape: Shape) -> None:
        self._shape = _checked_shape(self, input_shape, self.patch_size)
        limit = (self.kernel_size**2 * input_shape[-1]) ** -0.5
        self.convolution = keras.layers.Conv2D(
            self.embed_dim,
            self.kernel_size,
            self.patch_size,
            padding="valid" if self.kernel_size == self.patch_size else "same",
            data_format="channels_last",
            kernel_initializer=initial_kernel(self.kernel_initializer),
            bias_initializer=self.bias_initializer or keras.initializers.RandomUniform(-limit, limit),
            kernel_regularizer=self.kernel_regularizer,
            kernel_constraint=self.kernel_constraint,
            dtype=self.dtype_policy,
            name="convolution",
        )
        self.convolution.build(input_shape)
        if self.use_norm:
            self.norm = BatchNorm(dtype=self.dtype_policy, name="norm")
            self.norm.build(self.convolution.compute_output_shape(input_shape))
        self.position_embedding = _add_position_embedding(self, self.compute_output_shape(input_shape))
        if self.use_class_token:
            self.class_token = self.add_weight(
                name="class_token",
                shape=(1, 1, self.embed_dim),
                initializer=keras.initializers.RandomNormal(stddev=1e-6),
            )

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        x = self.convolution(with_known_sides(inputs, self._shape))
        if self.use_norm:
            x = self.norm(x, training=training)
        if not self.use_class_token:
            return x + self.position_embedding
        # The token is added where the patches are padded: it needs no copy for each sample.
        positions = x.shape[1] * x.shape[2]
        patches = ops.pad(ops.reshape(x, (-1, positions, 1, self.embed_dim)), ((0, 0), (1, 0), (0, 0), (0, 0)))
        token = ops.pad(ops.convert_to_tensor(self.class_token), ((0, positions), (0, 0), (0, 0)))
        return patches + (token + self.position_embedding)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, _ = input_shape
        height, width = height // self.patch_size, width // self.patch_size
        if self.use_class_token:
            height, width = 1 + height * width, 1
        return batch, height, width, self.embed_dim

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "embed_dim": self.embed_dim,
            "patch_size": self.patch_size,
            "use_norm": self.use_norm,
            "use_class_token": self.use_class_token,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "position_embedding_initializer": keras.initializers.serialize(self.position_embedding_initializer),
            "kernel_size": self.kernel_size,
        }


@keras.saving.register_keras_serializable("keras_binaryvit")
class PatchMerging(BinaryKernels):
    """Halves a map's sides and widens it, between two stages of the pyramid.

    Binary, with y = BN(x): `RPReLU(BN(Conv_b 2x2/2 (sign(y + shift))) + copies(AvgPool 2x2(y))) + position`, where
    copies repeats all channels up to `embed_dim`. Full precision: `BN(Conv 2x2/2 (BN(x))) + position`.

    Args:
        embed_dim: Channels of the output; with binary merging a multiple of the input's.
        binary: Whether the convolution is binary.
        input_quantizer: Of the binary convolution's inputs: whatever `quantizers.get` takes.
        kernel_quantizer: Of the binary convolution's kernel: whatever `quantizers.get` takes.
        position_embedding_initializer: `None` for a truncated normal distribution with a deviation of 0.02.
        **kwargs: `kernel_initializer`, `kernel_regularizer` and `kernel_constraint`, as in `BinaryKernels`, and the
            arguments of `keras.layers.Layer`.

    Shapes: `(batch, height, width, channels)` gives `(batch, height / 2, width / 2, embed_dim)`.

    Raises:
        ValueError: The sides are odd, or `embed_dim` is no multiple of the channels.

    Source: BinaryViT, arXiv 2306.16678, section 3.4; full precision is the paper's row with a dagger.
    """

    def __init__(
        self,
        embed_dim: int,
        binary: bool = True,
        input_quantizer: QuantizerLike = "approx_sign",
        kernel_quantizer: QuantizerLike = "scaled_sign",
        position_embedding_initializer: str | dict | Callable | None = None,
        **kwargs: Any,
    ):
        super().__init__(input_quantizer, kernel_quantizer, **kwargs)
        self.embed_dim = positive_integer("embed_dim", embed_dim)
        self.binary = binary
        self.position_embedding_initializer = keras.initializers.get(position_embedding_initializer)

    def build(self, input_shape: Shape) -> None:
        self._shape = _checked_shape(self, input_shape, 2)
        channels = input_shape[-1]
        output_shape = self.compute_output_shape(input_shape)
        arguments = self.kernel_arguments()
        if not self.binary:
            arguments |= {"input_quantizer": None, "kernel_quantizer": None}
        self.input_norm = BatchNorm(dtype=self.dtype_policy, name="input_norm")
        self.convolution = QuantConv2D(
            self.embed_dim,
            2,
            2,
            data_format="channels_last",
            use_bias=False,
            **arguments | {"kernel_initializer": initial_kernel(self.kernel_initializer)},
            name="convolution",
        )
        self.convolution.warns_unclipped = False
        self.norm = BatchNorm(dtype=self.dtype_policy, name="norm")
        self.input_norm.build(input_shape)
        self.convolution.build(input_shape)
        self.norm.build(output_shape)
        if self.binary:
            if self.embed_dim % channels:
                raise ValueError(
                    "Binary patch merging needs an embed_dim that is a multiple of the channels. "
                    f"Received: embed_dim={self.embed_dim}, channels={channels}"
                )
            self.shift = Shift(dtype=self.dtype_policy, name="shift")
            self.activation = RPReLU(dtype=self.dtype_policy, name="activation")
            self.shift.build(input_shape)
            self.activation.build(output_shape)
        self.position_embedding = _add_position_embedding(self, output_shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        inputs = self.input_norm(with_known_sides(inputs, self._shape), training=training)
        merged = self.norm(self.convolution(self.shift(inputs) if self.binary else inputs), training=training)
        if self.binary:
            pooled = average_pool(inputs, 2)
            copies = self.embed_dim // pooled.shape[-1]
            merged = self.activation(merged + ops.concatenate([pooled] * copies, axis=-1))
        return merged + self.position_embedding

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, _ = input_shape
        return batch, height // 2, width // 2, self.embed_dim

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "embed_dim": self.embed_dim,
            "binary": self.binary,
            "position_embedding_initializer": keras.initializers.serialize(self.position_embedding_initializer),
        }
