"""The layers of BinaryViT, for any Keras model. Channels come last everywhere."""

from typing import Any

from keras_binaryvit.layers.activation import RPReLU, Shift
from keras_binaryvit.layers.affine import ResidualAffine
from keras_binaryvit.layers.attention import BinarySelfAttention
from keras_binaryvit.layers.block import BinaryTransformerBlock
from keras_binaryvit.layers.feed_forward import BinaryFeedForward
from keras_binaryvit.layers.image_preprocessor import ImagePreprocessor
from keras_binaryvit.layers.normalization import BatchNorm
from keras_binaryvit.layers.patches import PatchEmbedding, PatchMerging
from keras_binaryvit.layers.pooling import MultiBranchAveragePooling
from keras_binaryvit.layers.projection import BinaryProjection
from keras_binaryvit.layers.quantized import QuantConv1D, QuantConv2D, QuantDense, QuantDepthwiseConv2D

__all__ = [
    "BatchNorm",
    "BinaryFeedForward",
    "BinaryProjection",
    "BinarySelfAttention",
    "BinaryTransformerBlock",
    "ImagePreprocessor",
    "MultiBranchAveragePooling",
    "PatchEmbedding",
    "PatchMerging",
    "QuantConv1D",
    "QuantConv2D",
    "QuantDense",
    "QuantDepthwiseConv2D",
    "RPReLU",
    "ResidualAffine",
    "Shift",
]

_INSTEAD = {
    "QuantConv2DTranspose": "keras.layers.UpSampling2D and QuantConv2D",
    "QuantConv3D": "QuantConv2D within keras.layers.TimeDistributed, and QuantConv1D over time",
    "QuantConv3DTranspose": "keras.layers.UpSampling3D, and QuantConv2D within keras.layers.TimeDistributed",
    "QuantLocallyConnected1D": "QuantConv1D, with one kernel for all positions: Keras 3 has no base layer",
    "QuantLocallyConnected2D": "QuantConv2D, with one kernel for all positions: Keras 3 has no base layer",
    "QuantSeparableConv1D": "keras.layers.DepthwiseConv1D and QuantConv1D(filters, 1, input_quantizer=...)",
    "QuantSeparableConv2D": "QuantDepthwiseConv2D and QuantConv2D(filters, 1, input_quantizer=...)",
}
"""What to use instead of Larq's layers that are not here: no interpreter has a binary operator for them."""


def __getattr__(name: str) -> Any:
    if name in _INSTEAD:
        raise AttributeError(f"keras_binaryvit has no layer {name}, which Larq has. Use {_INSTEAD[name]} instead.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
