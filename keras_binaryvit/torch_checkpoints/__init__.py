"""The authors' PyTorch checkpoints: their names, their files, and the models that they hold."""

from keras_binaryvit.torch_checkpoints.architecture import create_model, from_torch, read_config
from keras_binaryvit.torch_checkpoints.state_dicts import read_state_dict, write_state_dict
from keras_binaryvit.torch_checkpoints.weight_names import (
    Parameter,
    load_torch_state_dict,
    to_torch_state_dict,
    torch_parameters,
)

__all__ = [
    "Parameter",
    "create_model",
    "from_torch",
    "load_torch_state_dict",
    "read_config",
    "read_state_dict",
    "to_torch_state_dict",
    "torch_parameters",
    "write_state_dict",
]
