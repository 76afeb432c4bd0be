"""Trains a BinaryViT on CIFAR-10, converts it, and reports on the 10,000 test images.

python examples/train_cifar10.py --data-dir ~/tensorflow_datasets
python examples/train_cifar10.py --data-dir ~/tensorflow_datasets --real --output out/teacher
python examples/train_cifar10.py --data-dir ~/tensorflow_datasets --teacher out/teacher/model.keras --label-weight 0.5
"""

import argparse
import sys
from pathlib import Path

import recipe as recipes


def main() -> None:
    """Reads the command line and runs the pipeline."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="--real trains the same network without binarisers; a binary one can learn from it with --teacher.",
    )
    parser.add_argument("--preset", default="binaryvit_tiny_32", help="architecture (%(default)s)")
    recipes.add_arguments(
        parser,
        output=Path("out/cifar10"),
        epochs=24,
        batch_size=64,
        learning_rate=2e-3,
        schedule="step",
        warmup_epochs=1,
    )
    arguments = parser.parse_args()
    recipe = recipes.recipe(arguments, dataset="cifar10", image_size=32)

    import pipeline  # now that the backend is chosen

    pipeline.run(recipe, arguments.preset)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError, ImportError, FloatingPointError) as error:
        sys.exit(f"train_cifar10.py: {error}")
