"""`python -m keras_binaryvit.deploy.convert_worker FROZEN.keras MODEL.tflite ARGUMENTS`: the TensorFlow part of
`convert`, where training runs on another backend.

ARGUMENTS is JSON: those of `convert_frozen` after the model, and the modules that hold layers of the model.
"""

import importlib
import json
import sys

import keras

from keras_binaryvit.deploy.convert import convert_frozen
from keras_binaryvit.files import write_file


def main(source: str, target: str, arguments: str) -> None:
    """Converts the frozen model in the file `source` to the flatbuffer `target`."""
    options = json.loads(arguments)
    for module in options["modules"]:
        importlib.import_module(module)
    frozen = keras.saving.load_model(source, compile=False)
    write_file(target, convert_frozen(frozen, *options["arguments"]))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, ValueError, TypeError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
