"""What the examples share: train a BinaryViT, convert it, run the .tflite over the test split, and report."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_binaryvit as kb
from keras_binaryvit.deploy.files import check_output

TO_LCE = Path(__file__).resolve().parent.parent / "converters" / "to_lce.py"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        dataset: `digits`, or a name of TensorFlow Datasets.
        data_dir: Where TensorFlow Datasets has prepared it.
        preset: Architecture.
        epochs: Passes over the training split.
        batch_size: Images in a step.
        learning_rate: AdamW's, after a warm-up of one epoch; it falls to 0 along a cosine.
        seed: Of weights, shuffling and augmentation.
        output: Folder for all that is written.
        resume: Continue an interrupted run in the same folder.
    """

    dataset: str
    data_dir: str | None
    preset: str
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    output: Path
    resume: bool


def train(recipe: Recipe) -> tuple[keras.Model, dict[str, list[float]]]:
    """Returns the trained model and the history of its accuracies."""
    keras.utils.set_random_seed(recipe.seed)
    kb.keep_freed_memory()
    info = kb.data.info(recipe.dataset, recipe.data_dir)
    model = kb.BinaryViT.from_preset(
        recipe.preset, num_classes=info.num_classes, image_shape=(32, 32, info.image_shape[-1])
    )
    arguments = {"image_size": 32, "data_dir": recipe.data_dir, "seed": recipe.seed}
    training = kb.data.load(
        recipe.dataset, "train", batch_size=recipe.batch_size, augment=True, drop_remainder=True, **arguments
    )
    testing = kb.data.load(recipe.dataset, "test", batch_size=250, **arguments)
    steps = len(training)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(recipe.epochs - 1, 1) * steps, warmup_target=recipe.learning_rate, warmup_steps=steps
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=0.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    log = recipe.output / "history.csv"
    callbacks = [keras.callbacks.TerminateOnNaN(), keras.callbacks.CSVLogger(str(log), append=recipe.resume)]
    if recipe.resume:
        callbacks.append(keras.callbacks.BackupAndRestore(str(recipe.output / "backup")))
    model.fit(
        training,
        epochs=recipe.epochs,
        validation_data=testing,
        callbacks=callbacks,
        verbose=1 if sys.stdout.isatty() else 2,
    )
    history = np.atleast_1d(np.genfromtxt(log, delimiter=",", names=True))
    return model, {name: history[name].tolist() for name in ("accuracy", "val_accuracy")}


def convert(model: keras.Model, keras_file: Path, tflite_file: Path) -> bytes:
    """Saves the model, and returns the flatbuffer that it writes beside it."""
    model.save(keras_file)
    if keras.backend.backend() == "tensorflow":
        kb.deploy.write_file(tflite_file, kb.deploy.convert(model))
    else:
        subprocess.run([sys.executable, str(TO_LCE), str(keras_file), str(tflite_file), "--no-verify"], check=True)
    return tflite_file.read_bytes()


def plot(path: Path, history: dict, images: np.ndarray, labels, predictions, class_names) -> None:
    """Saves the learning curve and the first test images with what the .tflite says, wrong ones in red."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))
    axes = left.subplots()
    epochs = range(1, len(history["accuracy"]) + 1)
    axes.plot(epochs, history["accuracy"], label="training")
    axes.plot(epochs, history["val_accuracy"], label="test")
    axes.set(xlabel="epoch", ylabel="accuracy", title="Learning curve")
    axes.grid(alpha=0.3)
    axes.legend()
    for axis, image, label, prediction in zip(right.subplots(3, 6).flat, images, labels, predictions, strict=False):
        axis.imshow(image.squeeze(), cmap="gray")
        axis.set_title(class_names[prediction], color="black" if prediction == label else "red", fontsize=9)
        axis.axis("off")
    right.suptitle("Predictions of the .tflite (red: wrong)")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def run(recipe: Recipe) -> kb.deploy.Verification:
    """Does it all, prints the table, and returns how the flatbuffer compares with the model."""
    from rich.console import Console
    from rich.table import Table

    recipe.output.mkdir(parents=True, exist_ok=True)
    keras_file, tflite_file, picture = (recipe.output / f"model.{end}" for end in ("keras", "tflite", "png"))
    check_output(picture)  # hours of training must not end in an unwritable folder

    info = kb.data.info(recipe.dataset, recipe.data_dir)
    model, history = train(recipe)
    print("Converting ...", flush=True)
    flatbuffer = convert(model, keras_file, tflite_file)
    batches = kb.data.load(recipe.dataset, "test", batch_size=250, image_size=32, data_dir=recipe.data_dir)
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches.as_numpy_iterator(), strict=True))
    print(f"Running the .tflite over {len(images)} test images ...", flush=True)
    result = kb.deploy.verify(model, flatbuffer, images, labels, progress=sys.stderr.isatty())
    shown = slice(0, 18)
    predictions = kb.deploy.predict(flatbuffer, images[shown]).argmax(-1)
    plot(
        picture,
        history,
        kb.data.denormalize(images[shown], recipe.dataset),
        labels[shown],
        predictions,
        info.class_names,
    )

    table = Table(title=f"{recipe.preset} on {recipe.dataset}, {len(images)} test images")
    table.add_column("")
    table.add_column("Keras model", justify="right")
    table.add_column(".tflite", justify="right")
    table.add_row("accuracy", f"{result.model_accuracy:.2%}", f"{result.flatbuffer_accuracy:.2%}")
    table.add_row("agreement (top-1)", "", f"{result.agreement:.2%}")
    table.add_row("weights as float32", f"{model.count_params() * 4 / 1e6:.2f} MB", "")
    table.add_row("file", f"{keras_file.stat().st_size / 1e6:.2f} MB", f"{len(flatbuffer) / 1e6:.2f} MB")
    console = Console()
    console.print(table)
    console.print(f"Wrote {keras_file}, {tflite_file} and {picture}")
    return result
