"""Training: distillation from a real-valued teacher, the paper's recipe, and stages of binarization."""

from keras_binaryvit.training.callbacks import AttentionMonitor, FlipMonitor, ProgressBar
from keras_binaryvit.training.checkpoint import CheckpointError, TrainingCheckpoint
from keras_binaryvit.training.distiller import Distiller
from keras_binaryvit.training.distribution import Distribution, distribute
from keras_binaryvit.training.logit_cache import cache_logits, with_cached_logits
from keras_binaryvit.training.losses import SoftTargetCrossEntropy
from keras_binaryvit.training.schedules import WarmupStableDecay, scaled_learning_rate
from keras_binaryvit.training.teachers import AdaptedTeacher
from keras_binaryvit.training.two_stage import copy_weights, with_full_precision_kernels

__all__ = [
    "AdaptedTeacher",
    "AttentionMonitor",
    "CheckpointError",
    "Distiller",
    "Distribution",
    "FlipMonitor",
    "ProgressBar",
    "SoftTargetCrossEntropy",
    "TrainingCheckpoint",
    "WarmupStableDecay",
    "cache_logits",
    "copy_weights",
    "distribute",
    "scaled_learning_rate",
    "with_cached_logits",
    "with_full_precision_kernels",
]
