"""`python -m keras_binaryvit.deploy.convert_process FROZEN.keras MODEL.tflite [MODULE ...]`: the TensorFlow part of
`convert`, where training runs on another backend. The modules hold layers that the model needs.
"""

import importlib
import sys

import keras

from keras_binaryvit.deploy.lce import convert_frozen
from keras_binaryvit.files import write_file


def main(source: str, target: str, *modules: str) -> None:
    """Converts the frozen model in the file `source` to the flatbuffer `target`."""
    for module in modules:
        importlib.import_module(module)
    write_file(target, convert_frozen(keras.saving.load_model(source, compile=False)))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, ValueError, TypeError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
