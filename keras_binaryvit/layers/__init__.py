"""The layers of BinaryViT, for any Keras model. Channels come last everywhere."""

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
from keras_binaryvit.layers.quant_dense import QuantConv2D, QuantDense

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
    "QuantConv2D",
    "QuantDense",
    "RPReLU",
    "ResidualAffine",
    "Shift",
]
