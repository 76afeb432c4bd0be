"""The authors' PyTorch checkpoints: their names, their files, and the models that they hold."""

from keras_binaryvit.checkpoints.architecture import create_model, from_torch, read_config
from keras_binaryvit.checkpoints.names import Parameter, load_torch_state_dict, to_torch_state_dict, torch_parameters
from keras_binaryvit.checkpoints.state_dicts import read_state_dict, write_state_dict

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
