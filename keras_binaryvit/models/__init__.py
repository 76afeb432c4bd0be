"""Models composed of the library's layers."""

from keras_binaryvit.models.binaryvit import BinaryViT
from keras_binaryvit.models.deit import DeiT
from keras_binaryvit.models.image_classifier import ImageClassifier, Prediction
from keras_binaryvit.models.presets import Preset, PresetMetadata, list_presets

__all__ = ["BinaryViT", "DeiT", "ImageClassifier", "Prediction", "Preset", "PresetMetadata", "list_presets"]
