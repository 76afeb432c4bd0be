"""Binary vision transformers in Keras 3: train them anywhere, run them on phones and boards."""

from keras_binaryvit import (
    constraints,
    data,
    deploy,
    layers,
    metrics,
    models,
    optimizers,
    profile,
    quantizers,
    torch_checkpoints,
    training,
    visualize,
)
from keras_binaryvit.memory import disable_malloc_trim
from keras_binaryvit.models import BinaryViT, DeiT, list_presets

__version__ = "0.1.0"
__all__ = [
    "BinaryViT",
    "DeiT",
    "torch_checkpoints",
    "constraints",
    "data",
    "deploy",
    "disable_malloc_trim",
    "layers",
    "list_presets",
    "metrics",
    "models",
    "optimizers",
    "profile",
    "quantizers",
    "training",
    "visualize",
]
