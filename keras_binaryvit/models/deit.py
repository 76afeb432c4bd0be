"""DeiT: the real-valued vision transformer that teaches the binary ones, and its presets."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from keras_binaryvit.layers import PatchEmbedding
from keras_binaryvit.layers.image_preprocessor import ImagePreprocessor
from keras_binaryvit.layers.validation import checked_image_shape, positive_integer
from keras_binaryvit.models.image_classifier import ImageClassifier, top
from keras_binaryvit.models.presets import Preset, PresetMetadata
from keras_binaryvit.typing import Tensor

_SMALL = {
    "image_shape": (224, 224, 3),
    "num_classes": 1000,
    "patch_size": 16,
    "embed_dim": 384,
    "depth": 12,
    "num_heads": 6,
    "mlp_ratio": 4,
}

_PAPER = "DeiT, arXiv 2012.12877"
PRESETS = {
    "deit_tiny": Preset(
        {**_SMALL, "embed_dim": 192, "num_heads": 3}, PresetMetadata("DeiT-Ti/16", 5_717_416, source=_PAPER)
    ),
    "deit_small": Preset(
        _SMALL, PresetMetadata("DeiT-S/16, the teacher of BinaryViT's paper", 22_050_664, source=_PAPER)
    ),
    "deit_base": Preset(
        {**_SMALL, "embed_dim": 768, "num_heads": 12}, PresetMetadata("DeiT-B/16", 86_567_656, source=_PAPER)
    ),
}


@keras.saving.register_keras_serializable("keras_binaryvit")
def exact_gelu(x: Tensor) -> Tensor:
    """Returns `x * Phi(x)`, Phi being the normal distribution's, in the form that TFLite has an op for.

    Keras' own, on TensorFlow, is written with erfc, which the converters leave as an op that no TFLite runtime has.
    """
    return x * 0.5 * (1 + ops.erf(x * 0.5**0.5))


@keras.saving.register_keras_serializable("keras_binaryvit")
class DeiT(ImageClassifier):
    """A real-valued pre-norm vision transformer with a class token, made of Keras' own layers.

    Args:
        image_shape: `(height, width, channels)`; the sides must be multiples of `patch_size`.
        num_classes: Number of logits.
        patch_size: Side of the patches that the image is cut into.
        embed_dim: Channels.
        depth: Number of blocks.
        num_heads: Attention heads; must divide the channels.
        mlp_ratio: Hidden-to-input width ratio of the feed-forward layers.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 at the first.
        include_top: Whether the model gives logits. Without, it gives features.
        pooling: `"avg"`, `"max"` or `"token"`: features are a vector. `None`: features are the sequence of tokens, the
            class token first; logits are computed from the class token.
        preprocessor: How images become what the model takes: `classify` and converted files use it, and integer images
            are normalized with it.
        class_names: Names of the classes, in the order of the logits.
        dtype: Policy of the layers.
        name: Name of the model.
        trainable: As in `keras.Model`.

    Shapes: `(batch, height, width, channels)` images, float and normalized or integer pixels, give
    `(batch, num_classes)` logits. Features are
    `(batch, 1 + patches, embed_dim)` or `(batch, embed_dim)`.

    Raises:
        ValueError: The arguments don't fit each other; the message names the value.

    Source: DeiT, arXiv 2012.12877; LayerNorm with epsilon 1e-5, as in BinaryViT's code.
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
        mlp_ratio: int = 4,
        drop_path_rate: float = 0.0,
        *,
        include_top: bool = True,
        pooling: str | None = None,
        preprocessor: ImagePreprocessor | None = None,
        class_names: Sequence[str] | None = None,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ):
        arguments = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        image_shape = checked_image_shape(image_shape)
        depth = positive_integer("depth", depth)
        mlp_ratio = positive_integer("mlp_ratio", mlp_ratio)
        if positive_integer("embed_dim", embed_dim) % positive_integer("num_heads", num_heads):
            raise ValueError(f"num_heads must divide embed_dim. Received: num_heads={num_heads}, embed_dim={embed_dim}")
        # A configuration: one initializer would give all kernels of a size the same values.
        kernel = {"class_name": "TruncatedNormal", "config": {"stddev": 0.02}}

        inputs = keras.Input(image_shape, name="images")
        x = PatchEmbedding(
            embed_dim, patch_size, use_norm=False, use_class_token=True, dtype=dtype, name="patch_embedding"
        )(inputs)
        x = layers.Reshape((x.shape[1], embed_dim), dtype=dtype, name="tokens")(x)
        for block in range(depth):
            prefix = f"block_{block}"
            # One decision a sample, the same for all its positions and channels.
            drop = {"rate": drop_path_rate * block / max(depth - 1, 1), "noise_shape": (None, 1, 1), "dtype": dtype}
            h = layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name=f"{prefix}_attention_norm")(x)
            h = layers.MultiHeadAttention(
                num_heads, embed_dim // num_heads, kernel_initializer=kernel, dtype=dtype, name=f"{prefix}_attention"
            )(h, h)
            h = layers.Dropout(**drop, name=f"{prefix}_attention_drop_path")(h)
            x = layers.Add(dtype=dtype, name=f"{prefix}_attention_residual")([x, h])
            h = layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name=f"{prefix}_feed_forward_norm")(x)
            h = layers.Dense(
                embed_dim * mlp_ratio, exact_gelu, kernel_initializer=kernel, dtype=dtype, name=f"{prefix}_expand"
            )(h)
            h = layers.Dense(embed_dim, kernel_initializer=kernel, dtype=dtype, name=f"{prefix}_reduce")(h)
            h = layers.Dropout(**drop, name=f"{prefix}_feed_forward_drop_path")(h)
            x = layers.Add(dtype=dtype, name=prefix)([x, h])
        x = layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name="norm")(x)
        outputs = top(x, num_classes, include_top, pooling, True, dtype)
        super().__init__(inputs, outputs, arguments)
