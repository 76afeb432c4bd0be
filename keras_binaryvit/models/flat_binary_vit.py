"""FlatBinaryViT: a binary vision transformer of DeiT's shape, and the paper's ablation rows as its presets."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_binaryvit import quantizers
from keras_binaryvit.layers import BatchNorm, BinaryTransformerBlock, PatchEmbedding
from keras_binaryvit.layers.checks import checked_image_shape, positive_integer
from keras_binaryvit.models import deit
from keras_binaryvit.models.base import PresetModel, classification_head
from keras_binaryvit.typing import QuantizerLike

_SMALL = deit.PRESETS["deit_small"]

PRESETS = {
    "reactdeit_small": {**_SMALL, "class_token": True, "branches": False, "affine": False},
    "reactdeit_small_avg_pool": {**_SMALL, "branches": False, "affine": False},
    "reactdeit_small_avg_pool_multi_branch": {**_SMALL, "affine": False},
    "reactdeit_small_avg_pool_multi_branch_ls": _SMALL,
}
"""Arguments of `FlatBinaryViT` by preset: rows 1 to 4 of the paper's table 3, by the names of the authors' scripts."""


@keras.saving.register_keras_serializable("keras_binaryvit")
class FlatBinaryViT(PresetModel):
    """A vision transformer with 1-bit weights and activations, all of whose blocks work on maps of the same size.

    With a class token, and without branches and affine, it is the ReAct-DeiT that the paper starts from. A class token
    leaves no map to pool: the blocks then work on a single column of positions.

    Args:
        image_shape: `(height, width, channels)`; the sides must be multiples of `patch_size`.
        num_classes: Number of logits.
        patch_size: Side of the patches that the image is cut into.
        embed_dim: Channels.
        depth: Number of blocks.
        num_heads: Attention heads; must divide the channels.
        expansion: How many times wider the feed-forward layers are.
        class_token: Whether the head reads a class token, rather than the mean over all positions.
        branches: Whether the blocks have pooling branches; not with a class token.
        affine: Whether the blocks scale and shift their attention and feed-forward parts.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 at the first.
        input_quantizer: Of all binary layers' inputs: whatever `quantizers.get` takes.
        kernel_quantizer: Of all binary dense kernels: whatever `quantizers.get` takes.
        binary_probabilities: Whether attention probabilities are binary. With False, and None for both quantisers, the
            network is the same in real numbers.
        remat: Whether training computes what happens inside a block again in the backward pass, rather than keep it:
            less memory, more time, the same gradients.
        **kwargs: `name`, and other arguments of `keras.Model`.

    Shapes: `(batch, height, width, channels)` images, normalised, give `(batch, num_classes)` logits.

    Raises:
        ValueError: The arguments don't fit each other; the message names the value.

    Source: BinaryViT, arXiv 2306.16678, table 3.
    """

    presets = PRESETS

    def __init__(
        self,
        image_shape: Sequence[int] = (224, 224, 3),
        num_classes: int = 1000,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        expansion: int = 4,
        class_token: bool = False,
        branches: bool = True,
        affine: bool = True,
        drop_path_rate: float = 0.0,
        input_quantizer: QuantizerLike = "approx_sign",
        kernel_quantizer: QuantizerLike = "centered_scaled_sign",
        binary_probabilities: bool = True,
        remat: bool = False,
        **kwargs: Any,
    ):
        if class_token and branches:
            raise ValueError(
                "The pooling branches need a map, and a class token leaves none. "
                f"Received: class_token={class_token}, branches={branches}"
            )
        image_shape = checked_image_shape(image_shape)
        depth = positive_integer("depth", depth)
        input_quantizer = quantizers.get(input_quantizer)
        kernel_quantizer = quantizers.get(kernel_quantizer)
        dtype = kwargs.pop("dtype", None)

        inputs = keras.Input(image_shape, name="images")
        x = PatchEmbedding(
            embed_dim, patch_size, norm=False, class_token=class_token, dtype=dtype, name="patch_embedding"
        )(inputs)
        for block in range(depth):
            x = BinaryTransformerBlock(
                num_heads,
                expansion=expansion,
                drop_path_rate=drop_path_rate * block / max(depth - 1, 1),
                input_quantizer=input_quantizer,
                kernel_quantizer=kernel_quantizer,
                branches=branches,
                affine=affine,
                binary_probabilities=binary_probabilities,
                remat=remat,
                dtype=dtype,
                name=f"block_{block}",
            )(x)
        x = BatchNorm(dtype=dtype, name="norm")(x)
        if class_token:
            x = keras.layers.Cropping2D(
                ((0, x.shape[1] - 1), (0, 0)), data_format="channels_last", dtype=dtype, name="class_token"
            )(x)
        x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype=dtype, name="pooling")(x)
        outputs = classification_head(num_classes, embed_dim)(x)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        self.image_shape = image_shape
        self.num_classes = num_classes
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.expansion = expansion
        self.class_token = class_token
        self.branches = branches
        self.affine = affine
        self.drop_path_rate = drop_path_rate
        self.input_quantizer = input_quantizer
        self.kernel_quantizer = kernel_quantizer
        self.binary_probabilities = binary_probabilities
        self.remat = remat
        self._layers_dtype = dtype
        if dtype is not None:
            self.dtype_policy = dtype  # by which `compile` knows that losses need scaling

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            "name": self.name,
            "trainable": self.trainable,
            "image_shape": self.image_shape,
            "num_classes": self.num_classes,
            "patch_size": self.patch_size,
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "expansion": self.expansion,
            "class_token": self.class_token,
            "branches": self.branches,
            "affine": self.affine,
            "drop_path_rate": self.drop_path_rate,
            "input_quantizer": quantizers.serialize(self.input_quantizer),
            "kernel_quantizer": quantizers.serialize(self.kernel_quantizer),
            "binary_probabilities": self.binary_probabilities,
            "remat": self.remat,
            "dtype": keras.saving.serialize_keras_object(self._layers_dtype),
        }
