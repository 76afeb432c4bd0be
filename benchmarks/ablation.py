"""Trains each step from ReAct-DeiT to BinaryViT alike, for several seeds: the paper's table 3, and what is beyond it.

python benchmarks/ablation.py cifar10 --recipe cifar10 --epochs 20 --teacher teacher.keras
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

import binaryvit_commands.recipe as recipes
from binaryvit_commands import command

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
IMAGE_SIZES = {"tiny": 32, "small": 224}


def table_rows(size: str) -> dict[str, dict[str, Any]]:
    """Returns the rows of the table, each with its arguments of the preset: it adds one idea to the row before."""
    flat, _ = SIZES[size]
    stem, merging = {"stem": "convolutions"}, {"binary_patch_merging": False}
    return {
        "ReAct-DeiT": {**flat, "use_class_token": True, "use_pooling_branches": False, "use_affine": False},
        "+ average pooling": {**flat, "use_pooling_branches": False, "use_affine": False},
        "+ pooling branches": {**flat, "use_affine": False},
        "+ affine": flat,
        "+ pyramid": {},
        "+ convolutions before the first block": stem,
        "+ real patch merging": {**stem, **merging},
        "+ teacher": {**stem, **merging},
    }


ROWS = tuple(table_rows("tiny"))


@command
def main() -> None:
    """Reads the command line, trains what isn't done yet, and writes the table and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="A run that is done isn't trained again, and an unfinished one continues where it stopped: run the same "
        "command\nafter an interruption, or with more seeds or other rows.",
    )
    parser.add_argument("dataset", help="digits, a folder of images, or a prepared TensorFlow data set")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="32 px or the paper's 224 px (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from --seed on (default: %(default)s)")
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        choices=range(1, 1 + len(ROWS)),
        default=list(range(1, 1 + len(ROWS))),
        help=f"which rows of the table to train; row {len(ROWS)} alone has the --teacher (default: all)",
    )
    recipes.add_recipe(parser, output=Path("out/ablation"), keep=1)
    arguments = parser.parse_args()
    arguments.image_size, arguments.preset = IMAGE_SIZES[arguments.size], SIZES[arguments.size][1]
    recipe = recipes.recipe(arguments)
    if len(ROWS) in arguments.rows and not recipe.teacher:
        parser.error(f"row {len(ROWS)} learns from a --teacher: name one, or leave the row out of --rows")
    rows = {number: ROWS[number - 1] for number in sorted(arguments.rows)}
    results: dict[int, list[dict]] = {number: [] for number in rows}
    for seed in range(recipe.seed, recipe.seed + arguments.seeds):
        for number, name in rows.items():
            result = recipe.output / f"row_{number}_seed_{seed}.json"
            if not result.exists():
                print(f"{name}, seed {seed}:", flush=True)
                result.parent.mkdir(parents=True, exist_ok=True)
                teacher = recipe.teacher if number == len(ROWS) else None
                run = dataclasses.replace(recipe, seed=seed, output=result.with_suffix(""), teacher=teacher)
                result.write_text(json.dumps(train(run, table_rows(arguments.size)[name])))
            results[number].append(json.loads(result.read_text()))
    report(recipe, {rows[number]: runs for number, runs in results.items()})


def train(recipe: recipes.Recipe, changes: dict[str, Any]) -> dict[str, Any]:
    """Trains a row of the table, evaluates it once, after the last epoch, and returns its figures."""
    import keras

    import keras_binaryvit as kb
    from binaryvit_commands import training

    keras.backend.clear_session()
    model, history = training.train(dataclasses.replace(recipe, resume=recipe.output.exists()), **changes)
    _, labels, predictions = training.predict(recipe, model)
    costs = kb.profile.summary(model, print_fn=lambda text: None)
    return {
        "parameters": sum(costs.parameters.values()),
        "ops": costs.ops,
        "accuracy": float(np.mean(labels == predictions)),
        "curve": history["val_accuracy"],
    }


def report(recipe: recipes.Recipe, results: dict[str, list[dict]]) -> None:
    """Prints the table, and writes it and the mean learning curves to the output folder."""
    from matplotlib.figure import Figure

    lines = [
        "| network | parameters | OPs | accuracy | deviation | change | larger than twice its deviation |",
        "|---|---|---|---|---|---|---|",
    ]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    before = None
    for name, runs in results.items():
        accuracies = 100 * np.array([run["accuracy"] for run in runs])
        mean, deviation = accuracies.mean(), accuracies.std(ddof=1) if len(runs) > 1 else np.nan
        change, larger = "", ""
        if before is not None:
            # Of a difference of two means; before, the deviation is that of one run.
            of_change = np.hypot(deviation, before[1]) / len(runs) ** 0.5
            change = f"{mean - before[0]:+.2f} ± {of_change:.2f}"
            larger = "yes" if abs(mean - before[0]) > 2 * of_change else "no"
        before = mean, deviation
        lines.append(
            f"| {name} | {runs[0]['parameters']:,} | {runs[0]['ops'] / 1e6:.2f} M | {mean:.2f} % | {deviation:.2f} | "
            f"{change} | {larger} |"
        )
        curve = np.mean([run["curve"] for run in runs], axis=0)
        axes.plot(range(1, 1 + len(curve)), curve, label=f"{name}: {mean:.1f} %")
    axes.set(xlabel="epoch", ylabel="validation accuracy", title=f"From ReAct-DeiT to BinaryViT: {recipe.dataset}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(recipe.output / "ablation.png", dpi=100)
    (recipe.output / "ablation.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"Wrote {recipe.output / 'ablation.md'} and {recipe.output / 'ablation.png'}")


if __name__ == "__main__":
    main()
