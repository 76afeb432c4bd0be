"""Models composed of the library's layers."""

from keras_binaryvit.models.binaryvit import BinaryViT
from keras_binaryvit.models.deit import DeiT

__all__ = ["BinaryViT", "DeiT"]
