"""Trains a binary vision transformer on a data set or a folder of images.

binaryvit-train photos/                                                      one subfolder per class
binaryvit-train cifar10 --data-dir ~/tensorflow_datasets --recipe cifar10 --teacher teacher.keras
binaryvit-train imagenet2012 --recipe imagenet --teacher deit_small.keras    300 epochs, as in the paper
"""

import argparse
from pathlib import Path

import binaryvit_commands.recipe as recipes
from binaryvit_commands import command


def parse_arguments() -> argparse.Namespace:
    """Returns the command line's arguments; the recipe that is named sets the defaults of the others."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Writes model.keras, which knows its preprocessing and class names; checkpoints; history.csv; and, with "
        "matplotlib,\ncurve.png and confusion.png. --resume continues after an interruption.",
    )
    parser.add_argument(
        "dataset", help="a folder of images, digits, or a data set that TensorFlow Datasets has prepared"
    )
    recipes.add_recipe(parser)
    return parser.parse_args()


@command
def main() -> None:
    """Trains, saves the model, and draws what came out."""
    recipe = recipes.recipe(parse_arguments())
    recipe.output.mkdir(parents=True, exist_ok=True)

    import numpy as np  # now that the backend is chosen

    import keras_binaryvit as kb
    from binaryvit_commands import training
    from keras_binaryvit.files import check_output, save_model

    file = check_output(recipe.output / "model.keras")  # hours of training must not end in an unwritable folder
    model, history = training.train(recipe)
    save_model(file, model)
    accuracies = history["val_accuracy"]
    print(f"Validation accuracy: {accuracies[-1]:.2%}, at best {max(accuracies):.2%}. Wrote {file}")

    split, labels, predictions = training.predict(recipe, model)
    print(f"Accuracy on {split!r}: {np.mean(predictions == labels):.2%} of {len(labels)} images")
    try:
        figures = {
            "curve.png": kb.visualize.learning_curve(history),
            "confusion.png": kb.visualize.confusion_matrix(labels, predictions, model.class_names),
        }
    except ImportError as error:
        print(f"No pictures: {error}")
    else:
        for name, figure in figures.items():
            figure.savefig(recipe.output / name, dpi=100)
        print(f"Drew {' and '.join(str(recipe.output / name) for name in figures)}")
    if not recipe.full_precision:
        print(f"For phones and boards: binaryvit-convert {file} {Path(file).with_suffix('.tflite')}")
