"""BinaryTransformerBlock: attention, feed-forward and pooling branches around two real-valued shortcuts."""

from typing import Any

import keras

from keras_binaryvit.layers.affine import ResidualAffine
from keras_binaryvit.layers.attention import BinarySelfAttention
from keras_binaryvit.layers.binary_kernels import BinaryKernels
from keras_binaryvit.layers.feed_forward import BinaryFeedForward
from keras_binaryvit.layers.normalization import BatchNorm
from keras_binaryvit.layers.pooling import MultiBranchAveragePooling
from keras_binaryvit.layers.rematerialization import rematerialized
from keras_binaryvit.typing import QuantizerLike, Shape, Tensor


@keras.saving.register_keras_serializable("keras_binaryvit")
class BinaryTransformerBlock(BinaryKernels):
    """One block of BinaryViT:

        y = x + DropPath(Affine(Attention(BN(x))))
        h = BN(y)
        out = y + DropPath(Affine(FeedForward(h))) + MultiBranchAveragePooling(h)

    The ablation rows of the paper leave some of it out.

    Args:
        num_heads: Heads of the attention; must divide the channels.
        reduction: Spatial reduction of its keys and values; must divide the map's sides.
        expansion: How many times wider the feed-forward layer is.
        drop_path_rate: Share of samples whose residual branch is dropped in training, the others scaled up.
        input_quantizer: Of all binary layers' inputs: whatever `quantizers.get` takes.
        kernel_quantizer: Of all binary layers' kernels: whatever `quantizers.get` takes.
        use_pooling_branches: Whether to use pooling branches.
        use_affine: Whether to scale and shift the residual branches; the pooling branches have theirs either way.
        binary_probabilities: Whether attention probabilities are binary.
        remat: Whether training computes the block's intermediate results again in the backward pass, rather than keep
            them: less memory, more time, the same gradients.
        **kwargs: `kernel_initializer`, `kernel_regularizer` and `kernel_constraint`, as in `BinaryKernels`, and the
            arguments of `keras.layers.Layer`.

    Shapes: `(batch, height, width, channels)`, and the same comes out.

    Source: BinaryViT, arXiv 2306.16678, figure 2, section 3 and table 3.
    """

    def __init__(
        self,
        num_heads: int = 1,
        reduction: int = 1,
        expansion: int = 4,
        drop_path_rate: float = 0.0,
        input_quantizer: QuantizerLike = "approx_sign",
        kernel_quantizer: QuantizerLike = "centered_scaled_sign",
        use_pooling_branches: bool = True,
        use_affine: bool = True,
        binary_probabilities: bool = True,
        remat: bool = False,
        **kwargs: Any,
    ):
        super().__init__(input_quantizer, kernel_quantizer, **kwargs)
        self.drop_path_rate = drop_path_rate
        self.use_pooling_branches = use_pooling_branches
        self.use_affine = use_affine
        self.remat = remat
        affine_layer = ResidualAffine if use_affine else keras.layers.Identity
        self.attention_norm = BatchNorm(dtype=self.dtype_policy, name="attention_norm")
        self.attention = BinarySelfAttention(
            num_heads,
            reduction,
            binary_probabilities=binary_probabilities,
            **self.kernel_arguments(),
            name="attention",
        )
        self.attention_affine = affine_layer(dtype=self.dtype_policy, name="attention_affine")
        self.feed_forward_norm = BatchNorm(dtype=self.dtype_policy, name="feed_forward_norm")
        self.feed_forward = BinaryFeedForward(expansion, **self.kernel_arguments(), name="feed_forward")
        self.feed_forward_affine = affine_layer(dtype=self.dtype_policy, name="feed_forward_affine")
        self.branches = (
            MultiBranchAveragePooling(dtype=self.dtype_policy, name="branches") if use_pooling_branches else None
        )
        # One decision a sample, the same for all its positions and channels.
        self.drop_path = keras.layers.Dropout(
            drop_path_rate, noise_shape=(None, 1, 1, 1), dtype=self.dtype_policy, name="drop_path"
        )

    def build(self, input_shape: Shape) -> None:
        for layer in (
            self.attention_norm,
            self.attention,
            self.attention_affine,
            self.feed_forward_norm,
            self.feed_forward,
            self.feed_forward_affine,
            self.branches,
            self.drop_path,
        ):
            if layer is not None:
                layer.build(input_shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if self.remat and training:
            return rematerialized(self, lambda x: self._outputs(x, training=True), inputs)
        return self._outputs(inputs, training)

    def _outputs(self, inputs, training):
        x = self.attention(self.attention_norm(inputs, training=training), training=training)
        x = inputs + self.drop_path(self.attention_affine(x), training=training)
        h = self.feed_forward_norm(x, training=training)
        f = self.feed_forward_affine(self.feed_forward(h, training=training))
        x = x + self.drop_path(f, training=training)
        return x if self.branches is None else x + self.branches(h)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "num_heads": self.attention.num_heads,
            "reduction": self.attention.reduction,
            "expansion": self.feed_forward.expansion,
            "drop_path_rate": self.drop_path_rate,
            "use_pooling_branches": self.use_pooling_branches,
            "use_affine": self.use_affine,
            "binary_probabilities": self.attention.binary_probabilities,
            "remat": self.remat,
        }
