"""BinaryViT: the pyramid of binary transformer blocks, its flat relatives, and the presets of both."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from keras_binaryvit import quantizers
from keras_binaryvit.layers import BatchNorm, BinaryTransformerBlock, PatchEmbedding, PatchMerging
from keras_binaryvit.layers.image_preprocessor import ImagePreprocessor
from keras_binaryvit.layers.validation import checked_image_shape, positive_integer
from keras_binaryvit.models.image_classifier import ImageClassifier, top
from keras_binaryvit.models.presets import Preset, PresetMetadata
from keras_binaryvit.typing import QuantizerLike, Tensor

_SMALL = {
    "image_shape": (224, 224, 3),
    "num_classes": 1000,
    "patch_size": 4,
    "embed_dims": (64, 128, 256, 512),
    "depths": (3, 4, 8, 4),
    "num_heads": (1, 2, 4, 8),
    "sr_ratios": (8, 4, 1, 1),
    "mlp_ratios": (8, 8, 4, 4),
}

_TINY_32 = {
    "image_shape": (32, 32, 3),
    "num_classes": 10,
    "patch_size": 4,
    "embed_dims": (64, 128, 256),
    "depths": (1, 2, 1),
    "num_heads": (1, 2, 4),
    "sr_ratios": (2, 1, 1),
    "mlp_ratios": (4, 4, 4),
}

# Four times as many positions as _TINY_32, behind two real convolutions; what is between two stages is real, too.
_32 = {
    **_TINY_32,
    "patch_size": 2,
    "depths": (1, 2, 2),
    "sr_ratios": (4, 2, 1),
    "binary_patch_merging": False,
    "stem": "convolutions",
}

# DeiT-S with binary blocks: all on maps of the same size.
_FLAT_SMALL = {
    "image_shape": (224, 224, 3),
    "num_classes": 1000,
    "patch_size": 16,
    "embed_dims": (384,),
    "depths": (12,),
    "num_heads": (6,),
    "sr_ratios": (1,),
    "mlp_ratios": (4,),
    "use_patch_norm": False,
}

_PAPER = "BinaryViT, arXiv 2306.16678"


def _flat(row: int, parameters: int, **config: Any) -> Preset:
    description = f"Row {row} of the paper's table 3, by the name of the authors' script"
    return Preset({**_FLAT_SMALL, **config}, PresetMetadata(description, parameters, source=_PAPER))


PRESETS = {
    "binaryvit_small": Preset(
        _SMALL, PresetMetadata("The paper's network for 224x224 images", 22_617_851, source=_PAPER)
    ),
    "binaryvit_small_fp_merging": Preset(
        {**_SMALL, "binary_patch_merging": False},
        PresetMetadata("The paper's network with full-precision patch merging", 22_614_715, source=_PAPER),
    ),
    "binaryvit_tiny_32": Preset(_TINY_32, PresetMetadata("A pyramid of 4 blocks for 32x32 images", 1_473_806)),
    "binaryvit_tiny_32_cifar10": Preset(
        _TINY_32,
        PresetMetadata(
            "binaryvit_tiny_32, trained on CIFAR-10",
            1_473_806,
            dataset="cifar10",
            top1=0.707,
            recipe="Labels alone, 24 epochs; docs/training.md",
        ),
        sha256="8c0d30a441b7b752663a65e9a279277988aafe7ccfe1ae900122f1ea13e25da4",
    ),
    "binaryvit_32": Preset(
        _32, PresetMetadata("A pyramid of 5 blocks for 32x32 images behind a stem of convolutions", 2_357_679)
    ),
    "binaryvit_32_cifar10": Preset(
        _32,
        PresetMetadata(
            "binaryvit_32, trained on CIFAR-10",
            2_357_679,
            dataset="cifar10",
            top1=0.8635,
            recipe="binaryvit-train cifar10 --recipe cifar10, a WRN-16-4 as teacher, commit b5a2e45; docs/training.md",
        ),
        sha256="9a3b7a4f93b8290079c87e8202d3c137385bf2e5b8c6e7cc9452e404050f6678",
    ),
    "reactdeit_small": _flat(1, 22_406_260, use_class_token=True, use_pooling_branches=False, use_affine=False),
    "reactdeit_small_avg_pool": _flat(2, 22_405_492, use_pooling_branches=False, use_affine=False),
    "reactdeit_small_avg_pool_multi_branch": _flat(3, 22_442_356, use_affine=False),
    "reactdeit_small_avg_pool_multi_branch_ls": _flat(4, 22_460_788),
}


@keras.saving.register_keras_serializable("keras_binaryvit")
class BinaryViT(ImageClassifier):
    """A pyramid vision transformer with 1-bit weights and activations.

    Each stage but the first begins with a patch merging that halves the map; all tuples have one entry per stage, and
    there may be any number of stages. With one stage all blocks work on maps of the same size, as in DeiT: with a class
    token, without patch norm, branches and affine it is the ReAct-DeiT that the paper starts from. A class token leaves
    no map to pool or to merge: the blocks then work on a single column of positions.

    Args:
        image_shape: `(height, width, channels)`; the sides must be multiples of `patch_size` times 2 for each further
            stage, and the map of a stage of its reduction.
        num_classes: Number of logits.
        patch_size: Side of the patches that the image is cut into.
        embed_dims: Channels.
        depths: Number of blocks.
        num_heads: Attention heads; must divide the channels.
        sr_ratios: Spatial reduction of keys and values.
        mlp_ratios: Hidden-to-input width ratio of the feed-forward layers.
        binary_patch_merging: Whether the convolutions between stages are binary (67.7 % top-1 on ImageNet in the paper)
            or real (70.6 %).
        stem: What is before the first block: `"patches"`, the paper's patch embedding, or `"convolutions"`, a 3x3
            convolution, and one with stride 2 for each halving that makes `patch_size`: 2, 4, 8, ... All are real, with
            a batch normalization, and ReLU between them.
        use_patch_norm: Whether the patch embedding has a batch normalization.
        use_class_token: Whether the head reads a class token, rather than the mean over all positions; with one stage,
            and without pooling branches.
        use_pooling_branches: Whether the blocks have pooling branches.
        use_affine: Whether the blocks scale and shift their attention and feed-forward parts.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 at the first.
        input_quantizer: Of all binary layers' inputs: whatever `quantizers.get` takes.
        kernel_quantizer: Of all binary dense kernels: whatever `quantizers.get` takes.
        conv_kernel_quantizer: Of the binary patch mergings' kernels: whatever `quantizers.get` takes.
        binary_probabilities: Whether attention probabilities are binary. With False, and None for all quantizers, the
            network is the same in real numbers.
        remat: Whether training computes what happens inside a block again in the backward pass, rather than keep it:
            less memory, more time, the same gradients.
        include_top: Whether the model gives logits. Without, it gives features.
        pooling: `"avg"`, `"max"` or `"token"`: features are a vector. `None`: features are the last map; logits are
            computed from the class token if there is one, else from the mean.
        preprocessor: How images become what the model takes: `classify` and converted files use it, and integer images
            are normalized with it.
        class_names: Names of the classes, in the order of the logits.
        dtype: Policy of the layers.
        name: Name of the model.
        trainable: As in `keras.Model`.

    Attributes:
        pyramid_outputs: The last map of each stage, by the logarithm of its stride: see there.

    Shapes: `(batch, height, width, channels)` images, float and normalized or integer pixels, give
    `(batch, num_classes)` logits. Features are
    `(batch, map_height, map_width, embed_dims[-1])` or `(batch, embed_dims[-1])`.

    Raises:
        ValueError: The arguments don't fit each other; the message names the value.

    Source: BinaryViT, arXiv 2306.16678.
    """

    presets = PRESETS

    def __init__(
        self,
        image_shape: Sequence[int] = (224, 224, 3),
        num_classes: int = 1000,
        patch_size: int = 4,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 4, 8, 4),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        sr_ratios: Sequence[int] = (8, 4, 1, 1),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        binary_patch_merging: bool = True,
        drop_path_rate: float = 0.0,
        input_quantizer: QuantizerLike = "approx_sign",
        kernel_quantizer: QuantizerLike = "centered_scaled_sign",
        conv_kernel_quantizer: QuantizerLike = "scaled_sign",
        binary_probabilities: bool = True,
        remat: bool = False,
        *,
        stem: str = "patches",
        use_patch_norm: bool = True,
        use_class_token: bool = False,
        use_pooling_branches: bool = True,
        use_affine: bool = True,
        include_top: bool = True,
        pooling: str | None = None,
        preprocessor: ImagePreprocessor | None = None,
        class_names: Sequence[str] | None = None,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ):
        arguments = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        stages = {
            "embed_dims": embed_dims,
            "depths": depths,
            "num_heads": num_heads,
            "sr_ratios": sr_ratios,
            "mlp_ratios": mlp_ratios,
        }
        lengths = {argument: len(values) for argument, values in stages.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"All tuples must have one entry per stage. Received these numbers of entries: {lengths}")
        if not depths:
            raise ValueError("A model needs at least one stage. Received: depths=()")
        for depth in depths:
            positive_integer("depths", depth)
        if use_class_token and (use_pooling_branches or len(depths) > 1):
            raise ValueError(
                "The pooling branches and further stages need a map, and a class token leaves none. "
                f"Received: use_class_token={use_class_token}, use_pooling_branches={use_pooling_branches}, "
                f"depths={tuple(depths)}"
            )
        if stem not in ("patches", "convolutions"):
            raise ValueError(f"stem must be 'patches' or 'convolutions'. Received: stem={stem!r}")
        halvings = positive_integer("patch_size", patch_size).bit_length() - 1
        if stem == "convolutions" and (patch_size != max(2, 2**halvings) or embed_dims[0] % patch_size):
            raise ValueError(
                "stem='convolutions' needs a patch_size of 2, 4, 8, ... that divides embed_dims[0]. "
                f"Received: patch_size={patch_size}, embed_dims={tuple(embed_dims)}"
            )
        input_quantizer = quantizers.get(input_quantizer)
        kernel_quantizer = quantizers.get(kernel_quantizer)
        conv_kernel_quantizer = quantizers.get(conv_kernel_quantizer)

        x = inputs = keras.Input(checked_image_shape(image_shape), name="images")
        if stem == "convolutions":
            for index in range(halvings):
                x = keras.layers.Conv2D(
                    embed_dims[0] // 2 ** (halvings - index),
                    3,
                    strides=min(index + 1, 2),
                    padding="same",
                    data_format="channels_last",
                    use_bias=False,
                    kernel_initializer="he_normal",
                    dtype=dtype,
                    name=f"stem_convolution_{index}",
                )(x)
                x = BatchNorm(dtype=dtype, name=f"stem_norm_{index}")(x)
                x = keras.layers.ReLU(dtype=dtype, name=f"stem_activation_{index}")(x)
        x = PatchEmbedding(
            embed_dims[0],
            patch_size if stem == "patches" else 2,
            use_patch_norm,
            use_class_token,
            kernel_size=None if stem == "patches" else 3,
            dtype=dtype,
            name="patch_embedding",
        )(x)
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
                    sr_ratios[stage],
                    mlp_ratios[stage],
                    drop_path_rate * block / last_block,
                    input_quantizer,
                    kernel_quantizer,
                    use_pooling_branches,
                    use_affine,
                    binary_probabilities,
                    remat,
                    dtype=dtype,
                    name=f"block_{block}",
                )(x)
                block += 1
        x = BatchNorm(dtype=dtype, name="norm")(x)
        outputs = top(x, num_classes, include_top, pooling, use_class_token, dtype)
        super().__init__(inputs, outputs, arguments)

    @property
    def pyramid_outputs(self) -> dict[str, Tensor]:
        """The last map of each stage, before the last norm, by its stride: `"P2"` has one value per 4x4 pixels.

        `keras.Model(model.inputs, model.pyramid_outputs)` feeds a detector.

        Raises:
            ValueError: There is a class token, or a stride is no power of two.
        """
        strides = [self.patch_size * 2**stage for stage in range(len(self.depths))]
        if self.use_class_token or any(stride & (stride - 1) for stride in strides):
            raise ValueError(
                "pyramid_outputs needs maps with strides that are powers of two. "
                f"Received: use_class_token={self.use_class_token}, strides {strides}"
            )
        last = [sum(self.depths[: stage + 1]) - 1 for stage in range(len(self.depths))]
        blocks = [self.get_layer(f"block_{index}") for index in last]
        return {f"P{int(math.log2(stride))}": block.output for stride, block in zip(strides, blocks, strict=True)}


@keras.saving.register_keras_serializable("keras_binaryvit")
class FlatBinaryViT(BinaryViT):
    """What version 0.1 called a `BinaryViT` with one stage; its files load as one."""

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> BinaryViT:
        """Returns the `BinaryViT` of a config of version 0.1."""
        config = {**config, "use_patch_norm": False, "sr_ratios": (1,), "num_heads": (config["num_heads"],)}
        for old, new in {"embed_dim": "embed_dims", "depth": "depths", "expansion": "mlp_ratios"}.items():
            config[new] = (config.pop(old),)
        return BinaryViT.from_config(config, custom_objects)
