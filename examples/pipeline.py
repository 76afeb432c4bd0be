"""What the small examples share: train a BinaryViT, convert it, run the .tflite over the test split, and report."""

import sys
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import training
from recipe import Recipe

import keras_binaryvit as kb
from keras_binaryvit.files import check_output, save_model


def accuracy_without_an_interpreter(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns the shares of correct predictions of the model, and of the frozen one that a conversion starts from."""
    networks = model, kb.deploy.freeze(model)
    trained, frozen = (network.predict(images, verbose=0).argmax(-1) for network in networks)
    return np.mean(trained == labels), np.mean(frozen == labels)


def plot(
    path: Path,
    history: dict,
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Saves the learning curve and the first test images with what the .tflite says, wrong ones in red."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(12, 5), layout="constrained")
    ((left, right),) = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.2))
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


def run(recipe: Recipe, preset: str) -> None:
    """Does it all, and prints the table of how the flatbuffer compares with the model."""
    from rich.console import Console
    from rich.table import Table

    recipe.output.mkdir(parents=True, exist_ok=True)
    keras_file, tflite_file, picture = (recipe.output / f"model.{end}" for end in ("keras", "tflite", "png"))
    check_output(picture)  # hours of training must not end in an unwritable folder

    info = kb.data.info(recipe.dataset, recipe.data_dir)
    model, history = training.train(recipe, **kb.BinaryViT.presets[preset].config, name=preset)
    save_model(keras_file, model)
    if recipe.real:
        print(
            f"Accuracy: {history['val_accuracy'][-1]:.2%}. Wrote {keras_file}; a real-valued network isn't converted."
        )
        return
    split = "test" if "test" in info.num_examples else "validation"
    preprocessor = kb.data.preprocessor(recipe.dataset, recipe.image_size, data_dir=recipe.data_dir)
    batches = kb.data.load(recipe.dataset, split, batch_size=250, preprocessor=preprocessor, data_dir=recipe.data_dir)
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches.as_numpy_iterator(), strict=True))
    print("Converting ...", flush=True)
    flatbuffer = kb.deploy.convert(model)
    kb.deploy.write_file(tflite_file, flatbuffer)
    print(f"Running the .tflite over {len(images)} test images ...", flush=True)
    try:
        result = kb.deploy.verify(model, flatbuffer, images, labels, progress=sys.stderr.isatty())
    except ImportError as error:
        trained, frozen = accuracy_without_an_interpreter(model, images, labels)
        print(f"Not run. {error}")
        print(
            f"Accuracy: {trained:.2%}; frozen, as the file holds it: {frozen:.2%}. Wrote {keras_file}, {tflite_file}."
        )
        return
    shown = slice(0, 18)
    predictions = kb.deploy.predict(flatbuffer, images[shown]).argmax(-1)
    plot(
        picture,
        history,
        preprocessor.denormalize(images[shown]),
        labels[shown],
        predictions,
        info.class_names,
    )

    table = Table(title=f"{preset} on {recipe.dataset}, {len(images)} test images")
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
