"""The commands that come with keras-binaryvit.

They are a package of their own because importing keras_binaryvit imports Keras: `--help` then takes seconds, and the
backend can't be chosen any more.
"""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

COMMANDS = {
    "binaryvit-train": "train a network on a data set or a folder of images",
    "binaryvit-convert": "convert a .keras model to a .tflite file and verify it",
    "binaryvit-from-torch": "convert a PyTorch checkpoint of the authors' code to a .keras model",
    "binaryvit-to-torch": "write a .keras model's weights for the authors' code",
    "binaryvit-run": "classify images with a .tflite file (pip install binaryvit-runtime)",
    "binaryvit-benchmark": "measure a .tflite file (pip install binaryvit-runtime)",
}


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Makes `main` end with a message and without a traceback where something can't be done."""

    @functools.wraps(main)
    def run() -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        warnings.formatwarning = lambda message, category, *rest: f"{category.__name__}: {message}\n"
        try:
            main()
        except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
            sys.exit(f"{Path(sys.argv[0]).name}: {error}")
        except KeyboardInterrupt:
            sys.exit(f"{Path(sys.argv[0]).name}: interrupted; nothing was written.")

    return run
