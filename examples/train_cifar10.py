"""Trains a BinaryViT on CIFAR-10 (well under an hour on two cores), converts it, and reports on the 10,000 test images.

python examples/train_cifar10.py --data-dir ~/tensorflow_datasets
"""

import argparse
import sys
from pathlib import Path

import pipeline


def main() -> None:
    """Reads the command line and runs the pipeline."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data-dir", help="where TensorFlow Datasets has prepared cifar10")
    parser.add_argument("--preset", default="binaryvit_tiny_32", help="architecture")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training images")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="AdamW's, after warm-up")
    parser.add_argument("--seed", type=int, default=0, help="of weights, shuffling and augmentation")
    parser.add_argument("--output", type=Path, default=Path("out/cifar10"), help="folder to write to")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run that had this flag")
    pipeline.run(pipeline.Recipe(dataset="cifar10", **vars(parser.parse_args())))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        sys.exit(f"train_cifar10.py: {error}")
