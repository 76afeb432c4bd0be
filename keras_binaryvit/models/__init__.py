"""Models composed of the library's layers."""

from keras_binaryvit.models.binary_vit import BinaryViT
from keras_binaryvit.models.deit import DeiT
from keras_binaryvit.models.flat_binary_vit import FlatBinaryViT

__all__ = ["BinaryViT", "DeiT", "FlatBinaryViT"]
