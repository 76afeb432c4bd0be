"""BinaryViT: the pyramid of binary transformer blocks, and its presets."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_binaryvit import quantizers
from keras_binaryvit.layers import BatchNorm, BinaryTransformerBlock, PatchEmbedding, PatchMerging
from keras_binaryvit.layers.checks import checked_image_shape, positive_integer
from keras_binaryvit.models.base import PresetModel, classification_head
from keras_binaryvit.typing import QuantizerLike

_SMALL = {
    "image_shape": (224, 224, 3),
    "num_classes": 1000,
    "patch_size": 4,
    "embed_dims": (64, 128, 256, 512),
    "depths": (3, 4, 8, 4),
    "num_heads": (1, 2, 4, 8),
    "reductions": (8, 4, 1, 1),
    "expansions": (8, 8, 4, 4),
}

_TINY_32 = {
    "image_shape": (32, 32, 3),
    "num_classes": 10,
    "patch_size": 4,
    "embed_dims": (64, 128, 256),
    "depths": (1, 2, 1),
    "num_heads": (1, 2, 4),
    "reductions": (2, 1, 1),
    "expansions": (4, 4, 4),
}

PRESETS = {
    "binaryvit_small": _SMALL,
    "binaryvit_small_fp_merging": {**_SMALL, "binary_patch_merging": False},
    "binaryvit_tiny_32": _TINY_32,
    "binaryvit_tiny_32_cifar10": _TINY_32,
}
"""Arguments of `BinaryViT` by preset. The first is the paper's network, the second its variant with a dagger."""

TRAINED = {"binaryvit_tiny_32_cifar10": "0730cf63ecafc021524333ffabe751a3f8214f70763d4f3aa4d35bbce0028141"}
"""SHA-256 of the weights of the presets that are trained. On CIFAR-10's test images: 70.7 %."""


@keras.saving.register_keras_serializable("keras_binaryvit")
class BinaryViT(PresetModel):
    """A pyramid vision transformer with 1-bit weights and activations.

    Each stage but the first begins with a patch merging that halves the map; all tuples have one entry a stage, and
    there may be any number of stages.

    Args:
        image_shape: `(height, width, channels)`; the sides must be multiples of `patch_size` times 2 for each further
            stage, and the map of a stage of its reduction.
        num_classes: Number of logits.
        patch_size: Side of the patches that the image is cut into.
        embed_dims: Channels.
        depths: Number of blocks.
        num_heads: Attention heads; must divide the channels.
        reductions: Spatial reduction of keys and values.
        expansions: How many times wider the feed-forward layers are.
        binary_patch_merging: Whether the convolutions between stages are binary (67.7 % top-1 on ImageNet in the paper)
            or real (70.6 %).
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 at the first.
        input_quantizer: Of all binary layers' inputs: whatever `quantizers.get` takes.
        kernel_quantizer: Of all binary dense kernels: whatever `quantizers.get` takes.
        conv_kernel_quantizer: Of the binary patch mergings' kernels: whatever `quantizers.get` takes.
        binary_probabilities: Whether attention probabilities are binary. With False, and None for all quantisers, the
            network is the same in real numbers.
        remat: Whether training computes what happens inside a block again in the backward pass, rather than keep it:
            less memory, more time, the same gradients.
        **kwargs: `name`, and other arguments of `keras.Model`.

    Shapes: `(batch, height, width, channels)` images, normalised, give `(batch, num_classes)` logits.

    Raises:
        ValueError: The arguments don't fit each other; the message names the value.

    Source: BinaryViT, arXiv 2306.16678.
    """

    presets = PRESETS
    trained = TRAINED

    def __init__(
        self,
        image_shape: Sequence[int] = (224, 224, 3),
        num_classes: int = 1000,
        patch_size: int = 4,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 4, 8, 4),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        reductions: Sequence[int] = (8, 4, 1, 1),
        expansions: Sequence[int] = (8, 8, 4, 4),
        binary_patch_merging: bool = True,
        drop_path_rate: float = 0.0,
        input_quantizer: QuantizerLike = "approx_sign",
        kernel_quantizer: QuantizerLike = "centered_scaled_sign",
        conv_kernel_quantizer: QuantizerLike = "scaled_sign",
        binary_probabilities: bool = True,
        remat: bool = False,
        **kwargs: Any,
    ):
        stages = {
            "embed_dims": tuple(embed_dims),
            "depths": tuple(depths),
            "num_heads": tuple(num_heads),
            "reductions": tuple(reductions),
            "expansions": tuple(expansions),
        }
        lengths = {name: len(values) for name, values in stages.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"All tuples need one entry a stage. Received these numbers of entries: {lengths}")
        if not stages["depths"]:
            raise ValueError("A model needs at least one stage. Received: depths=()")
        for depth in stages["depths"]:
            positive_integer("depths", depth)
        image_shape = checked_image_shape(image_shape)

        input_quantizer = quantizers.get(input_quantizer)
        kernel_quantizer = quantizers.get(kernel_quantizer)
        conv_kernel_quantizer = quantizers.get(conv_kernel_quantizer)
        dtype = kwargs.pop("dtype", None)

        inputs = keras.Input(image_shape, name="images")
        x = PatchEmbedding(embed_dims[0], patch_size, dtype=dtype, name="patch_embedding")(inputs)
        last_block = max(sum(depths) - 1, 1)
        block = 0
        for stage, depth in enumerate(depths):
            if stage > 0:
                x = PatchMerging(
                    embed_dims[stage],
                    binary_patch_merging,
                    input_quantizer,
                    conv_kernel_quantizer,
                    dtype=dtype,
                    name=f"patch_merging_{stage}",
                )(x)
            for _ in range(depth):
                x = BinaryTransformerBlock(
                    num_heads[stage],
                    reductions[stage],
                    expansions[stage],
                    drop_path_rate * block / last_block,
                    input_quantizer,
                    kernel_quantizer,
                    binary_probabilities=binary_probabilities,
                    remat=remat,
                    dtype=dtype,
                    name=f"block_{block}",
                )(x)
                block += 1
        x = BatchNorm(dtype=dtype, name="norm")(x)
        x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype=dtype, name="pooling")(x)
        outputs = classification_head(num_classes, embed_dims[-1])(x)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        self.image_shape = image_shape
        self.num_classes = num_classes
        self.patch_size = patch_size
        self.stages = stages
        self.binary_patch_merging = binary_patch_merging
        self.drop_path_rate = drop_path_rate
        self.input_quantizer = input_quantizer
        self.kernel_quantizer = kernel_quantizer
        self.conv_kernel_quantizer = conv_kernel_quantizer
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
            **self.stages,
            "binary_patch_merging": self.binary_patch_merging,
            "drop_path_rate": self.drop_path_rate,
            "input_quantizer": quantizers.serialize(self.input_quantizer),
            "kernel_quantizer": quantizers.serialize(self.kernel_quantizer),
            "conv_kernel_quantizer": quantizers.serialize(self.conv_kernel_quantizer),
            "binary_probabilities": self.binary_probabilities,
            "remat": self.remat,
            "dtype": keras.saving.serialize_keras_object(self._layers_dtype),
        }
