"""From a trained model to a `.tflite` file, and the proof that it computes the same."""

from keras_binaryvit.deploy.binary import BinaryLayer, binary_table
from keras_binaryvit.deploy.convert import convert, count_operators
from keras_binaryvit.deploy.export_c import CExport, export_c
from keras_binaryvit.deploy.freeze import freeze
from keras_binaryvit.deploy.graph import ConversionError
from keras_binaryvit.deploy.inspect import Inspection, inspect
from keras_binaryvit.deploy.interpreters import run
from keras_binaryvit.deploy.metadata import add_metadata
from keras_binaryvit.deploy.report import report
from keras_binaryvit.deploy.verify import Verification, VerificationError, verify
from keras_binaryvit.files import load_model, write_file

__all__ = [
    "BinaryLayer",
    "CExport",
    "ConversionError",
    "Inspection",
    "Verification",
    "VerificationError",
    "add_metadata",
    "binary_table",
    "convert",
    "count_operators",
    "export_c",
    "freeze",
    "inspect",
    "load_model",
    "report",
    "run",
    "verify",
    "write_file",
]
