"""Trains BinaryViT on ImageNet as the paper does: 300 epochs, from a real-valued DeiT-S alone.

python converters/from_torch.py deit_small.pth deit_small.keras --preset deit_small
python examples/train_imagenet.py --data-dir ~/tensorflow_datasets --teacher deit_small.keras
"""

import argparse
import sys
from pathlib import Path

import recipe as recipes


def main() -> None:
    """Reads the command line, trains, and saves the model."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Reported by the paper: 67.7 % top-1, and 70.6 % with --preset binaryvit_small_fp_merging.",
    )
    parser.add_argument("--dataset", default="imagenet2012", help="prepared TensorFlow data set (%(default)s)")
    parser.add_argument("--preset", default="binaryvit_small", help="architecture (%(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="side of the images in pixels (%(default)s)")
    recipes.add_arguments(parser, output=Path("out/imagenet"), epochs=300)
    arguments = parser.parse_args()
    recipe = recipes.recipe(arguments)

    import training  # now that the backend is chosen

    import keras_binaryvit as kb
    from keras_binaryvit.files import save_model

    presets = kb.BinaryViT.presets
    if arguments.preset not in presets:
        raise ValueError(f"Unknown preset {arguments.preset!r}. Known presets: {', '.join(presets)}")
    model, history = training.train(recipe, **presets[arguments.preset].config, name=arguments.preset)
    file = recipe.output / "model.keras"
    save_model(file, model)
    print(f"Accuracy: {history['val_accuracy'][-1]:.2%}, at best {max(history['val_accuracy']):.2%}. Wrote {file}")
    print(f"For phones and boards: python converters/to_lce.py {file} {file.with_suffix('.tflite')}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError, ImportError, FloatingPointError) as error:
        sys.exit(f"train_imagenet.py: {error}")
