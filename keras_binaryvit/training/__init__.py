"""Training: distillation from a real-valued teacher, the paper's recipe, and stages of binarisation."""

from keras_binaryvit.training.losses import SoftCrossEntropy

__all__ = ["SoftCrossEntropy"]
