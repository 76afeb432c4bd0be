"""Trains a BinaryViT on handwritten digits, converts it, and runs the .tflite over the test images.

python examples/quickstart.py
python examples/quickstart.py --dataset cifar10 --data-dir ~/tensorflow_datasets
"""

import argparse
import sys
from pathlib import Path

import recipe as recipes


def main() -> None:
    """Reads the command line and runs the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits", help="digits, or a prepared TensorFlow data set (%(default)s)")
    parser.add_argument("--preset", default="binaryvit_tiny_32", help="architecture (%(default)s)")
    recipes.add_arguments(
        parser,
        output=Path("out/quickstart"),
        epochs=20,
        batch_size=32,
        learning_rate=8e-3,
        schedule="step",
        warmup_epochs=1,
    )
    arguments = parser.parse_args()
    recipe = recipes.recipe(arguments, image_size=32)

    import pipeline  # now that the backend is chosen

    pipeline.run(recipe, arguments.preset)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError, ImportError, FloatingPointError) as error:
        sys.exit(f"quickstart.py: {error}")
