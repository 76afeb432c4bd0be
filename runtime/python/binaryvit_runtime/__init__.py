"""Runs binary networks in LiteRT, with their operators as a delegate in C++."""

from binaryvit_runtime.classifier import Classifier, Prediction
from binaryvit_runtime.interpreter import Interpreter, include_path, library_path, load_delegate
from binaryvit_runtime.metadata import Metadata, read_metadata
from binaryvit_runtime.preprocessing import Preprocessor
from binaryvit_runtime.profile import OperatorTime

__all__ = [
    "Classifier",
    "Interpreter",
    "Metadata",
    "OperatorTime",
    "Prediction",
    "Preprocessor",
    "include_path",
    "library_path",
    "load_delegate",
    "read_metadata",
]
__version__ = "0.1.0"
