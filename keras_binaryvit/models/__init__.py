"""Models composed of the library's layers."""

from keras_binaryvit.models.binary_vit import BinaryViT

__all__ = ["BinaryViT"]
