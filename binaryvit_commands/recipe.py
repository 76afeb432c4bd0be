"""Recipes for training. Nothing here imports Keras: its backend is one of the options."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's, on ImageNet.

    Attributes:
        dataset: `digits`, a folder of images, or a name of TensorFlow Datasets.
        preset: Where the network comes from, see `from_preset`; weights that it has are trained further.
        data_dir: Where TensorFlow Datasets has prepared it; may be in object storage.
        train_split: What to train on, such as `train[:10%]`.
        validation_split: What is evaluated after each epoch; None means `validation`, or `test` if there is none.
        image_size: Side of the images, in pixels.
        output: Folder for all that is written.
        epochs: Passes over the training split.
        batch_size: Images in a step, over all devices and hosts.
        learning_rate: AdamW's; None means the paper's 5e-4 for each 512 images of a batch.
        final_learning_rate: Where the learning rate ends.
        schedule: Whether the learning rate changes once an `epoch`, as in the paper, or each `step`.
        warmup_epochs: Epochs in which the learning rate rises.
        decay_epochs: Epochs at the end in which it falls linearly; None means a cosine over all after the warm-up.
        weight_decay: AdamW's, on kernels alone.
        clip_norm: Largest norm of all gradients together; None for any.
        drop_path_rate: Stochastic depth of the last block.
        teacher: A .keras model to learn from; None means to learn from labels.
        teacher_passes: Passes over the augmented images whose teacher's logits are computed before the training, which
            then goes through these passes again and again. 0 means that the teacher runs in each step.
        label_weight: Share of the labels in the loss, the teacher's being the rest.
        temperature: Of the distillation.
        full_precision_kernel_epochs: Epochs of a first stage in which only activations are binary.
        full_precision: Train the same network without quantizers, to compare with or to teach.
        mixed_precision: `float16` or `bfloat16`; None for float32.
        remat: Compute a block's intermediate results again in the backward pass: less memory, more time.
        devices: How many devices of this host; None for all.
        seed: Of weights, shuffling and augmentation.
        keep: Checkpoints to keep, besides the best.
        tensorboard: Write logs for TensorBoard too.
        resume: Continue the run in `output`.
    """

    dataset: str
    preset: str = "binaryvit_small"
    image_size: int = 224
    output: Path = Path("out")
    epochs: int = 300
    data_dir: str | None = None
    train_split: str = "train"
    validation_split: str | None = None
    batch_size: int = 512
    learning_rate: float | None = None
    final_learning_rate: float = 1e-5
    schedule: str = "epoch"
    warmup_epochs: int = 0
    decay_epochs: int | None = None
    weight_decay: float = 0.0
    clip_norm: float | None = None
    drop_path_rate: float = 0.0
    teacher: Path | None = None
    teacher_passes: int = 0
    label_weight: float = 0.0
    temperature: float = 1.0
    full_precision_kernel_epochs: int = 0
    full_precision: bool = False
    mixed_precision: str | None = None
    remat: bool = False
    devices: int | None = None
    seed: int = 0
    keep: int = 3
    tensorboard: bool = False
    resume: bool = False


_SMALL_IMAGES = {
    "preset": "binaryvit_tiny_32",
    "image_size": 32,
    "schedule": "step",
    "warmup_epochs": 1,
    "epochs": 24,
    "batch_size": 64,
    "learning_rate": 2e-3,
}
RECIPES: dict[str, dict[str, Any]] = {
    "small_images": _SMALL_IMAGES,
    "cifar10": {
        **_SMALL_IMAGES,
        "preset": "binaryvit_32",
        "epochs": 114,
        "batch_size": 256,
        "learning_rate": 3e-3,
        "schedule": "epoch",
        "warmup_epochs": 5,
        "train_split": "train[:45000]",
        "validation_split": "train[45000:]",
        "temperature": 2.0,
    },
    "digits": {**_SMALL_IMAGES, "epochs": 20, "batch_size": 32, "learning_rate": 8e-3},
    "imagenet": {},
}
"""What they change of `Recipe`."""


def add_recipe(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Adds `--recipe`, and the options of `add_arguments` with the defaults of the recipe that the command names."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--recipe", choices=RECIPES, default="small_images")
    name = first.parse_known_args()[0].recipe
    text = "defaults of all others, shown here for %(default)s"
    parser.add_argument("--recipe", choices=RECIPES, default=name, help=text)
    add_arguments(parser, **{**RECIPES[name], **defaults})


def add_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Adds an option for everything in `Recipe` but the data set, and one for Keras' backend."""
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)} | defaults

    def add(group, name, text, **arguments):
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, default=defaults[name], help=f"{text} (default: %(default)s)", **arguments)

    def switch(group, name, text):
        group.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)

    parser.add_argument(
        "--backend",
        choices=("tensorflow", "jax", "torch"),
        default=os.environ.get("KERAS_BACKEND", "tensorflow"),
        help="what Keras computes with (default: %(default)s)",
    )
    add(parser, "preset", "a name of keras_binaryvit.list_presets(), a preset's folder, or a .keras file")
    add(parser, "image_size", "height and width of the images, in pixels", type=int)
    add(parser, "data_dir", "where TensorFlow Datasets has prepared the data set; gs:// and s3:// work too")
    add(parser, "train_split", "what to train on, such as train[:10%%]")
    add(parser, "validation_split", "what to evaluate after each epoch; None means validation, or else test")
    add(parser, "output", "folder to write to", type=Path)
    switch(parser, "resume", "continue an interrupted run in the same folder")
    add(parser, "keep", "checkpoints to keep, besides the best", type=int)
    switch(parser, "tensorboard", "write logs for TensorBoard too; history.csv has the same")

    recipe = parser.add_argument_group("recipe")
    add(recipe, "epochs", "passes over the training images", type=int)
    add(recipe, "batch_size", "images in a step, over all devices and hosts", type=int)
    add(recipe, "learning_rate", "AdamW's; None means 5e-4 for each 512 images of a batch", type=float)
    add(recipe, "final_learning_rate", "where the learning rate ends", type=float)
    add(recipe, "schedule", "how often the learning rate changes", choices=("epoch", "step"))
    add(recipe, "warmup_epochs", "epochs in which the learning rate rises", type=int)
    add(
        recipe,
        "decay_epochs",
        "epochs at the end in which it falls linearly; None means a cosine over all after the warm-up",
        type=int,
    )
    add(recipe, "weight_decay", "AdamW's, on kernels alone", type=float)
    add(recipe, "clip_norm", "largest norm of all gradients together", type=float)
    add(recipe, "drop_path_rate", "stochastic depth of the last block", type=float)
    add(
        recipe,
        "full_precision_kernel_epochs",
        "epochs of a first stage in which only activations are binary",
        type=int,
    )
    switch(recipe, "full_precision", "train the same network without quantizers, to compare with or to teach")
    add(recipe, "seed", "of weights, shuffling and augmentation", type=int)

    teacher = parser.add_argument_group("distillation")
    add(teacher, "teacher", "a .keras model to learn from; without one, from labels", type=Path)
    add(
        teacher,
        "teacher_passes",
        "passes over the augmented images whose logits are computed once and trained on again and again; 0 runs the "
        "teacher in each step",
        type=int,
    )
    add(teacher, "label_weight", "share of the labels in the loss", type=float)
    add(teacher, "temperature", "of the distillation", type=float)

    machine = parser.add_argument_group("machine")
    add(machine, "devices", "how many devices of this host; None means all", type=int)
    add(machine, "mixed_precision", "compute in half precision", choices=("float16", "bfloat16"))
    switch(machine, "remat", "compute blocks again in the backward pass: less memory, more time")


def recipe(arguments: argparse.Namespace, **others: Any) -> Recipe:
    """Returns the recipe that was chosen, and sets Keras' backend, which is fixed when Keras is first imported."""
    os.environ["KERAS_BACKEND"] = arguments.backend
    # JAX keeps what it has compiled: the next run of the same network starts at once.
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(caches / "keras_binaryvit" / "jax"))
    names = {field.name for field in dataclasses.fields(Recipe)}
    return Recipe(**{name: value for name, value in vars(arguments).items() if name in names}, **others)
