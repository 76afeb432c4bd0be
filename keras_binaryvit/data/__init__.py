"""Labeled images for training and evaluation, as `tf.data` pipelines."""

from keras_binaryvit.data.datasets import find_corrupt, info, load, preprocessor
from keras_binaryvit.data.sources import DatasetInfo

__all__ = ["DatasetInfo", "find_corrupt", "info", "load", "preprocessor"]
