"""Trains a recipe with every combination of some settings, for several seeds, and prints a table of the accuracies.

python benchmarks/sweep.py cifar10 --recipe cifar10 --data-dir ~/tensorflow_datasets --train-split train[:4500] \\
    --epochs 10 --decay-epochs 3 --vary learning_rate=1e-3,2e-3,4e-3 --vary stem=patches,convolutions --seeds 3

A setting is an option of binaryvit-train or an argument of the preset. A run that is done isn't trained again, and an
unfinished one continues where it stopped: run the same command after an interruption, or with more settings.
"""

import argparse
import ast
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

import binaryvit_commands.recipe as recipes
from binaryvit_commands import command


def setting(text: str) -> tuple[str, list[Any]]:
    """Returns the name and the values of `name=value,value`."""
    name, _, values = text.partition("=")
    if not values:
        raise argparse.ArgumentTypeError(f"name=value,value is expected. Received: {text!r}")

    def parsed(value):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value

    return name, [parsed(value) for value in values.split(",")]


def run(recipe: recipes.Recipe, changes: dict[str, Any]) -> float:
    """Returns the last validation accuracy of a run, after training what isn't done of it."""
    from binaryvit_commands import training

    options = {field.name for field in dataclasses.fields(recipe)}
    recipe = dataclasses.replace(recipe, **{name: value for name, value in changes.items() if name in options})
    others = {name: value for name, value in changes.items() if name not in options}
    _, history = training.train(dataclasses.replace(recipe, resume=recipe.output.exists()), **others)
    return history["val_accuracy"][-1]


@command
def main() -> None:
    """Reads the command line, trains what isn't done yet, and prints the table, the best first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="digits, a folder of images, or a prepared TensorFlow data set")
    parser.add_argument("--vary", type=setting, action="append", required=True, help="name=value,value")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on (default: %(default)s)")
    recipes.add_recipe(parser, output=Path("out/sweep"))
    arguments = parser.parse_args()
    recipe = recipes.recipe(arguments)
    names, values = zip(*arguments.vary, strict=True)
    rows = []
    for combination in itertools.product(*values):
        changes = dict(zip(names, combination, strict=True))
        title = ", ".join(f"{name}={value}" for name, value in changes.items())
        accuracies = []
        for seed in range(recipe.seed, recipe.seed + arguments.seeds):
            print(f"{title}, seed {seed}:", flush=True)
            folder = recipe.output / f"{title}, seed {seed}".replace("/", "_")
            accuracies.append(run(dataclasses.replace(recipe, seed=seed, output=folder), changes))
        rows.append((np.mean(accuracies), np.std(accuracies, ddof=1) if len(accuracies) > 1 else None, title))
    print("\n| settings | validation accuracy after the last epoch | deviation |\n|---|---|---|")
    for mean, deviation, title in sorted(rows, key=lambda row: -row[0]):
        print(f"| {title} | {mean:.2%} | {'' if deviation is None else f'{deviation:.2%}'} |")


if __name__ == "__main__":
    main()
