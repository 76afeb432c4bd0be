"""Training by a recipe: teacher, stages, schedule, devices, checkpoints and monitors."""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_binaryvit as kb
from binaryvit_commands.recipe import Recipe
from keras_binaryvit.files import load_model

# The same architecture without quantizers.
_FULL_PRECISION = {
    **dict.fromkeys(["input_quantizer", "kernel_quantizer", "conv_kernel_quantizer"]),
    "binary_probabilities": False,
}
# What may differ when a run continues.
_FREE = ("data_dir", "train_split", "validation_split", "output", "devices", "keep", "resume", "remat", "tensorboard")


def train(recipe: Recipe, **overrides: Any) -> tuple[kb.models.ImageClassifier, dict[str, list[float]]]:
    """Trains the recipe's preset, with the preset's arguments in `overrides` replaced, on the data set.

    Returns:
        The model after the last epoch, and the logs of all epochs. `checkpoints` in the output folder has the last
        epochs and the best.
    """
    _write_recipe(recipe)
    keras.utils.set_random_seed(recipe.seed)
    kb.disable_malloc_trim()
    if recipe.mixed_precision:
        keras.config.set_dtype_policy(f"mixed_{recipe.mixed_precision}")
    info = kb.data.info(recipe.dataset, recipe.data_dir)
    preprocessor = kb.data.preprocessor(recipe.dataset, recipe.image_size, data_dir=recipe.data_dir)
    overrides = {
        **overrides,
        "image_shape": (*preprocessor.image_size, len(preprocessor.mean)),
        "num_classes": info.num_classes,
        "preprocessor": preprocessor,
        "class_names": info.class_names,
        "drop_path_rate": recipe.drop_path_rate,
        **({"remat": True} if recipe.remat else {}),
        **(_FULL_PRECISION if recipe.full_precision else {}),
    }
    with _devices(recipe) as distribution:
        teacher = load_model(recipe.teacher) if recipe.teacher else None
        logits = recipe.output / "teacher_logits.npy"  # for both stages
        model = kb.models.ImageClassifier.from_preset(recipe.preset, **overrides)
        if epochs := recipe.full_precision_kernel_epochs:
            stage = dataclasses.replace(recipe, output=recipe.output / "full_precision_kernels", epochs=epochs)
            first = kb.training.with_full_precision_kernels(model)
            fit(stage, first, teacher, logits, distribution)
            kb.training.copy_weights(first, model)
        return model, fit(recipe, model, teacher, logits, distribution)


def _devices(recipe: Recipe) -> contextlib.AbstractContextManager[kb.training.Distribution]:
    if keras.backend.backend() == "torch" and recipe.devices is None:
        return contextlib.nullcontext(kb.training.Distribution(("default",)))
    return kb.training.distribute(recipe.devices)


def fit(
    recipe: Recipe,
    model: keras.Model,
    teacher: keras.Model | None,
    logits: Path,
    distribution: kb.training.Distribution,
) -> dict[str, list[float]]:
    """Trains a stage of the recipe, from its newest checkpoint if it continues, and returns the logs of all epochs."""
    recipe.output.mkdir(parents=True, exist_ok=True)
    checkpoints = kb.training.TrainingCheckpoint(recipe.output / "checkpoints", keep=recipe.keep)
    done = checkpoints.completed_epochs
    load = functools.partial(
        kb.data.load,
        recipe.dataset,
        preprocessor=model.preprocessor,
        data_dir=recipe.data_dir,
        seed=recipe.seed,
        shard=distribution.shard,
    )
    training = functools.partial(
        load, recipe.train_split, batch_size=recipe.batch_size, augment=True, drop_remainder=True
    )
    replicas = len(distribution.devices) * distribution.hosts
    split = recipe.validation_split or evaluation_split(kb.data.info(recipe.dataset, recipe.data_dir))
    # Those of all hosts, as the batches are.
    images = len(
        kb.data.load(recipe.dataset, split, batch_size=1, preprocessor=model.preprocessor, data_dir=recipe.data_dir)
    )
    size = evaluation_batch(split, images, recipe.batch_size, replicas)
    validation = load(split, batch_size=size, drop_remainder=True)

    steps = len(training())
    if not steps:
        raise ValueError(
            f"{recipe.train_split!r} of {recipe.dataset!r} has fewer images than a batch, {recipe.batch_size}. "
            "Choose a smaller --batch-size."
        )
    learning_rate = schedule(recipe, steps)
    per_step = recipe.schedule == "step"
    optimizer = kb.optimizers.AdamW(
        learning_rate if per_step else float(learning_rate(0)), recipe.weight_decay, global_clipnorm=recipe.clip_norm
    )
    # Both log the learning rate; Keras' scheduler can't where the optimizer has a schedule.
    rate = (
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: logs.update(learning_rate=float(optimizer.learning_rate))
        )
        if per_step
        else keras.callbacks.LearningRateScheduler(lambda epoch, _: float(learning_rate(epoch)))
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = model
    cached = teacher is not None and recipe.teacher_passes != 0
    passes = recipe.teacher_passes if cached else recipe.epochs
    if teacher is not None:
        if cached:
            if done < recipe.epochs:
                kb.training.cache_logits(teacher, training(), logits, passes)
            teacher = None
        trainer = kb.training.Distiller(model, teacher, recipe.label_weight, recipe.temperature)
    trainer.compile(optimizer, loss, metrics=["accuracy"])
    checkpoints.restore(trainer)
    history = keras.callbacks.CSVLogger(str(recipe.output / "history.csv"), append=recipe.resume)
    monitors = [rate, *_monitors(recipe, model, load(split, batch_size=16, cache=False)), history, checkpoints]
    with _explained(recipe):
        while done < recipe.epochs:
            # As many epochs as there are passes, which then begin anew.
            batches = training(first_epoch=done % passes)
            stop = min(done - done % passes + passes, recipe.epochs)
            trainer.fit(
                kb.training.with_cached_logits(batches, logits) if cached else batches,
                epochs=stop,
                initial_epoch=done,
                validation_data=validation,
                callbacks=monitors,
                shuffle=False,  # load shuffles
                verbose=0,
            )
            done, history.append = stop, True
    return checkpoints.history


def schedule(recipe: Recipe, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate by epochs done, or by steps done if the recipe's `schedule` is `step`.

    Args:
        recipe: What to train.
        steps: Steps of an epoch.

    Raises:
        ValueError: A learning rate isn't positive, or warm-up and decay leave no epoch.

    Source: BinaryViT, arXiv 2306.16678, and the authors' code; Loshchilov and Hutter, arXiv 1608.03983, eq. 5.
    """
    highest = (
        kb.training.scaled_learning_rate(recipe.batch_size) if recipe.learning_rate is None else recipe.learning_rate
    )
    if not (highest > 0 and recipe.final_learning_rate >= 0):
        raise ValueError(
            f"The learning rate must be positive, and the final one at least 0. Received: {highest} and "
            f"{recipe.final_learning_rate}"
        )
    decay = recipe.decay_epochs
    longest = recipe.epochs - (1 if decay is None else decay)
    if not 0 <= recipe.warmup_epochs <= longest or (decay is not None and decay < 1):
        raise ValueError(
            "Warm-up and decay must fit into the training. "
            f"Received: warmup_epochs={recipe.warmup_epochs}, decay_epochs={decay}, epochs={recipe.epochs}"
        )
    per_step = recipe.schedule == "step"
    unit = steps if per_step else 1
    initial = 0.0 if per_step else highest / (recipe.warmup_epochs + 1)  # a whole epoch at 0 would be wasted
    warmup_steps, total_steps = recipe.warmup_epochs * unit, recipe.epochs * unit
    if decay is not None:
        return kb.training.WarmupStableDecay(
            initial, highest, recipe.final_learning_rate, warmup_steps, decay * unit, total_steps
        )
    return keras.optimizers.schedules.CosineDecay(
        initial,
        decay_steps=total_steps - warmup_steps,
        alpha=recipe.final_learning_rate / highest,
        warmup_target=highest,
        warmup_steps=warmup_steps,
    )


def _monitors(recipe: Recipe, model: keras.Model, few_images: Any) -> list[keras.callbacks.Callback]:
    """Returns what watches the training; each sees what those before it have logged."""
    monitors = [keras.callbacks.TerminateOnNaN(raise_error=True)]
    if any(kb.quantizers.is_one_bit(getattr(layer, "kernel_quantizer", None)) for layer in model._flatten_layers()):
        monitors.append(kb.training.FlipMonitor())
    if any(getattr(layer, "binary_probabilities", False) for layer in model._flatten_layers()):
        images, _ = next(few_images.as_numpy_iterator())
        monitors.append(kb.training.AttentionMonitor(images))
    monitors.append(kb.training.ProgressBar())
    if recipe.tensorboard:
        monitors.append(keras.callbacks.TensorBoard(str(recipe.output / "tensorboard")))
    return monitors


@contextlib.contextmanager
def _explained(recipe: Recipe) -> Iterator[None]:
    """Says what to do where TensorFlow's input pipeline can't decode an image."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if not re.search("JPEG|PNG|Decode|image", str(error)):
            raise
        if named := re.search(r"ValueError: (.*find_corrupt.*)", str(error)):
            raise ValueError(named[1]) from error
        raise ValueError(
            f"An image of {recipe.dataset!r} can't be decoded; the last checkpoint is as it was. Find it with "
            f"keras_binaryvit.data.find_corrupt({recipe.dataset!r}, 'train', data_dir=...), and continue "
            "with --resume and a --train-split without it, such as 'train[:57]+train[58:]'."
        ) from error


def evaluation_split(info: kb.data.DatasetInfo) -> str:
    """Returns `validation` if there is one, for ImageNet's test images have no labels, or `test`."""
    split = next((name for name in ("validation", "test") if info.num_examples.get(name)), None)
    if split is None:
        raise ValueError(f"{info.name!r} has no images to evaluate on: neither a 'test' nor a 'validation' split.")
    return split


def predict(recipe: Recipe, model: kb.models.ImageClassifier) -> tuple[str, np.ndarray, np.ndarray]:
    """Returns the name of the split to evaluate on, and the labels and predicted classes of its images."""
    split = evaluation_split(kb.data.info(recipe.dataset, recipe.data_dir))
    batches = kb.data.load(
        recipe.dataset, split, preprocessor=model.preprocessor, data_dir=recipe.data_dir, cache=False, shuffle=False
    )
    labels = np.concatenate([labels for _, labels in batches.as_numpy_iterator()])
    return split, labels, model.predict(batches, verbose=0).argmax(-1)


def evaluation_batch(split: str, images: int, batch_size: int, replicas: int) -> int:
    """Returns the largest batch size that covers all images of a split and divides among all devices."""
    sizes = range(replicas, max(batch_size, replicas) + 1, replicas)
    covering = [size for size in sizes if images % size == 0]
    if not covering:
        print(f"No batch covers all {images} images of {split!r} on {replicas} devices: some are left.")
    return max(covering or sizes)


def _write_recipe(recipe: Recipe) -> None:
    """Writes the recipe to its output folder; a run that continues must have the one that is there.

    Raises:
        ValueError: The folder has another run, or one with another recipe.
    """
    file = recipe.output / "recipe.json"
    chosen = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(recipe).items()
        if name not in _FREE
    }
    # A run that failed before its first epoch was over has left nothing, and may be put right in the same folder.
    if file.exists() and any(
        path.is_file() and path.stat().st_size for path in recipe.output.rglob("*") if path != file
    ):
        if not recipe.resume:
            raise ValueError(
                f"{str(recipe.output)!r} holds a run: continue it with --resume, or name another --output."
            )
        there = json.loads(file.read_text())
        # A run of a version that didn't have an option was trained with its default.
        then = {field.name: there.get(field.name, field.default) for field in dataclasses.fields(Recipe)}
        if recipe.decay_epochs is not None:
            done = kb.training.TrainingCheckpoint(recipe.output / "checkpoints").completed_epochs
            if done <= min(then["epochs"], recipe.epochs) - recipe.decay_epochs:
                then["epochs"] = recipe.epochs  # so far, the learning rate hasn't depended on it
        differing = [f"{name}: {then[name]} then, {value} now" for name, value in chosen.items() if then[name] != value]
        if differing:
            raise ValueError(f"The run in {str(recipe.output)!r} can't continue differently: {'; '.join(differing)}.")
    recipe.output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(chosen, indent=2))
