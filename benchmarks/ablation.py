"""Trains each step from ReAct-DeiT to BinaryViT alike: the paper's table 3, on a data set of your choice.

python benchmarks/ablation.py --dataset cifar10 --data-dir ~/tensorflow_datasets
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import binaryvit_commands.recipe as recipes

# What each row of the table adds to the one before; the last is another network altogether.
ROWS = {
    "ReAct-DeiT": {"use_class_token": True, "use_pooling_branches": False, "use_affine": False},
    "+ average pooling": {"use_class_token": False, "use_pooling_branches": False, "use_affine": False},
    "+ pooling branches": {"use_class_token": False, "use_pooling_branches": True, "use_affine": False},
    "+ affine": {"use_class_token": False, "use_pooling_branches": True, "use_affine": True},
    "+ pyramid": None,
}
FLAT = {"sr_ratios": (1,), "mlp_ratios": (4,), "use_patch_norm": False}
# Arguments of the flat rows and the preset of the pyramid, of about the same number of multiply-adds.
SIZES = {
    "tiny": (
        {**FLAT, "patch_size": 4, "embed_dims": (64,), "depths": (4,), "num_heads": (2,)},
        "binaryvit_tiny_32",
    ),
    "small": (
        {**FLAT, "patch_size": 16, "embed_dims": (384,), "depths": (12,), "num_heads": (6,)},
        "binaryvit_small",
    ),
}


def main() -> None:
    """Reads the command line, trains the rows that aren't done yet, and writes the table and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="A row that is done isn't trained again, and an unfinished one continues where it stopped: run the "
        "same command after an interruption, or with other --rows to add some.",
    )
    parser.add_argument("--dataset", default="digits", help="digits, or a prepared TensorFlow data set (%(default)s)")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="32 px or the paper's 224 px (%(default)s)")
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        choices=range(1, 1 + len(ROWS)),
        default=list(range(1, 1 + len(ROWS))),
        help="which rows of the table to train (all)",
    )
    recipes.add_arguments(
        parser,
        output=Path("out/ablation"),
        epochs=10,
        batch_size=64,
        learning_rate=2e-3,
        schedule="step",
        warmup_epochs=1,
        keep=1,
    )
    arguments = parser.parse_args()
    arguments.image_size = {"tiny": 32, "small": 224}[arguments.size]
    recipe = recipes.recipe(arguments)
    names = list(ROWS)
    for number in arguments.rows:
        result = recipe.output / f"row_{number}.json"
        if result.exists():
            print(f"Row {number}, {names[number - 1]}: done before")
            continue
        print(f"Row {number}, {names[number - 1]}:", flush=True)
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(train(recipe, arguments.size, number)))
    report(recipe)


def train(recipe: recipes.Recipe, size: str, number: int) -> dict:
    """Trains a row of the table and returns its figures."""
    import keras_binaryvit as kb
    from binaryvit_commands import training

    flat, preset = SIZES[size]
    changes = list(ROWS.values())[number - 1]
    folder = recipe.output / f"row_{number}"
    row = dataclasses.replace(recipe, preset=preset, output=folder, resume=folder.exists())
    model, history = training.train(row, **({} if changes is None else {**flat, **changes}))
    costs = kb.profile.summary(model, print_fn=lambda text: None)
    return {"parameters": sum(costs.parameters.values()), "ops": costs.ops, "history": history}


def report(recipe: recipes.Recipe) -> None:
    """Prints the table of all rows that are done, and writes it and the learning curves to the output folder."""
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

    files = {number: recipe.output / f"row_{number}.json" for number in range(1, 1 + len(ROWS))}
    results = {number: json.loads(file.read_text()) for number, file in files.items() if file.exists()}

    rows = []
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    before = None
    for number, result in results.items():
        name, curve = list(ROWS)[number - 1], result["history"]["val_accuracy"]
        change = "" if before is None else f"{100 * (curve[-1] - before):+.2f}"
        before = curve[-1]
        rows.append((name, f"{result['parameters']:,}", f"{result['ops'] / 1e6:.2f} M", f"{curve[-1]:.2%}", change))
        axes.plot(range(1, 1 + len(curve)), curve, label=f"{name}: {curve[-1]:.2%}")
    axes.set(
        xlabel="epoch", ylabel="accuracy on the test split", title=f"From ReAct-DeiT to BinaryViT: {recipe.dataset}"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(recipe.output / "ablation.png", dpi=100)

    header = ("network", "parameters", "OPs", "accuracy", "change")
    table = Table(*header, title=f"{recipe.dataset}, {recipe.epochs} epochs")
    lines = ["| " + " | ".join(header) + " |", "|---|---|---|---|---|"]
    for row in rows:
        table.add_row(*row)
        lines.append("| " + " | ".join(row) + " |")
    (recipe.output / "ablation.md").write_text("\n".join(lines) + "\n")
    console = Console()
    console.print(table)
    console.print(f"Wrote {recipe.output / 'ablation.md'} and {recipe.output / 'ablation.png'}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        sys.exit(f"ablation.py: {error}")
