"""Distiller: a student that learns from a frozen teacher, with Keras' own `fit`."""

import os
from typing import Any

import keras
from keras import ops

from keras_binaryvit.training.losses import SoftTargetCrossEntropy
from keras_binaryvit.training.teachers import gives_probabilities
from keras_binaryvit.typing import Tensor


class _FrozenTeacher:
    """The teacher in inference mode. No Keras object, so that nothing trains it or saves it with the student."""

    def __init__(self, model: keras.Model):
        self.model = model

    def __call__(self, images: Tensor) -> Tensor:
        return ops.stop_gradient(self.model(images, training=False))


class Distiller(keras.Model):
    """Trains a student on its teacher's distribution over the classes, and evaluates it on the labels.

    With s the student's logits, t the teacher's and w the label weight, the loss of training is

        (1 - w) SoftTargetCrossEntropy(t, s) + w label_loss(labels, s) + the student's regularization losses

    The paper's w is 0: the teacher says everything, and labels only serve `metrics=["accuracy"]`. Evaluation needs
    labels and no teacher; its loss is the label loss.

    ```python
    distiller = Distiller(student, teacher)
    distiller.compile(optimizer, metrics=["accuracy"])
    distiller.fit(train, epochs=300, validation_data=test)  # batches of (images, labels)
    distiller.save("student.keras")  # the student alone, as student.save does
    ```

    `fit` ends with an error when the loss is NaN (Keras' `TerminateOnNaN`), before anything is saved. The weights in
    `save_weights` are the student's and the optimizer's.

    Args:
        student: The model to train; it has weights already, and gives logits.
        teacher: Its outputs are logits of the same classes. It is frozen (`teacher.trainable = False`) and runs in
            inference mode. `AdaptedTeacher` makes one of any classifier. None if the batches bring the teacher's
            logits: see `with_cached_logits`.
        label_weight: w, from 0 to less than 1.
        temperature: Of `SoftTargetCrossEntropy`.
        name: Name of the distiller.

    Raises:
        ValueError: The models don't fit each other or have no weights yet, one ends in a softmax, or a number is out of
            its range.

    Source: BinaryViT, arXiv 2306.16678, and the authors' code; Hinton et al., arXiv 1503.02531.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | None = None,
        label_weight: float = 0.0,
        temperature: float = 1.0,
        name: str = "distiller",
    ):
        if not 0 <= label_weight < 1:
            raise ValueError(f"label_weight must be from 0 to less than 1. Received: label_weight={label_weight}")
        _check_models(student, teacher)
        # Keras scales the loss of models of this policy, and a student can have it by its layers alone. The images go
        # to the student as they are.
        half = any(layer.dtype_policy.name == "mixed_float16" for layer in student._flatten_layers())
        super().__init__(name=name, dtype="mixed_float16" if half else "float32", autocast=False)
        self.student = student
        self.label_weight = label_weight
        self.distillation_loss = SoftTargetCrossEntropy(temperature)
        self._teacher = None
        if teacher is not None:
            teacher.trainable = False
            self._teacher = _FrozenTeacher(teacher)
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return self.student(inputs, training=training)

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """Of student and teacher: JAX is given all variables that a step reads."""
        variables = super().non_trainable_variables
        return variables if self._teacher is None else variables + self._teacher.model.variables

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        """As `keras.Model.compile`; `loss` is that of the labels, by default for labels as integers."""
        if loss is None:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        super().compile(optimizer, loss, **kwargs)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        labels, logits = self._labels_and_logits(y)
        if not training:
            return super().compute_loss(x, labels, y_pred, sample_weight, training)
        if self._teacher is not None:
            if logits is not None:
                raise ValueError("The batches bring the teacher's logits: create the Distiller with teacher=None.")
            logits = self._teacher(x)
        elif logits is None:
            raise ValueError(
                "This Distiller has no teacher, and the batches don't bring its logits. Create it with a teacher, or "
                "train on the data set that with_cached_logits returns."
            )
        loss = (1 - self.label_weight) * self.distillation_loss(logits, y_pred, sample_weight)
        if self.label_weight:
            loss += self.label_weight * self._compile_loss(labels, y_pred, sample_weight)
        for regularization in self.losses:
            loss += self._aggregate_additional_loss(regularization)
        return loss

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict:
        return super().compute_metrics(x, self._labels_and_logits(y)[0], y_pred, sample_weight)

    @staticmethod
    def _labels_and_logits(y: Any) -> tuple[Any, Any]:
        """Returns the labels of a batch, and the teacher's logits or None."""
        return (y["labels"], y["teacher_logits"]) if isinstance(y, dict) and "teacher_logits" in y else (y, None)

    def fit(self, x: Any = None, *args: Any, callbacks: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`.

        Raises:
            ValueError: There are no batches, or they don't fit the models.
            RuntimeError: The loss is NaN or infinite.
        """
        if hasattr(x, "element_spec"):
            x, steps = self._passes_in_order(x)
            if steps is not None:
                kwargs["steps_per_epoch"] = kwargs.get("steps_per_epoch") or steps
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = [keras.callbacks.TerminateOnNaN(raise_error=True), *keras.tree.flatten(callbacks or [])]
        return super().fit(x, *args, callbacks=callbacks, **kwargs)

    def _passes_in_order(self, dataset):
        """Returns a `tf.data.Dataset` of which each epoch sees the next pass, and the steps of an epoch if known.

        A pass begins when an iterator is made, and Keras makes more than one an epoch: on TensorFlow one that it
        doesn't read, elsewhere one to build the metrics with. Cached logits are of the first passes.
        """
        steps = int(dataset.cardinality())
        if steps == 0:
            raise ValueError(
                "The data set has no batches. Its split may be empty, or smaller than a batch with drop_remainder=True."
            )
        if keras.backend.backend() != "tensorflow":
            spec = keras.tree.map_structure(
                lambda s: keras.KerasTensor(tuple(s.shape), s.dtype.name), dataset.element_spec
            )
            self._symbolic_build(data_batch=spec)
        if steps < 0 or steps % self.steps_per_execution:
            return dataset, None
        return dataset.repeat(), steps

    def save(self, filepath: str | os.PathLike, overwrite: bool = True, **kwargs: Any) -> None:
        """Saves the student, a plain model that loads without distiller and teacher."""
        self.student.save(filepath, overwrite=overwrite, **kwargs)

    def export(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Exports the student."""
        self.student.export(filepath, *args, **kwargs)

    def get_config(self) -> dict:
        raise NotImplementedError("A Distiller isn't saved as such: save its student, `distiller.student.save(path)`.")


def _check_models(student, teacher):
    if teacher is student:
        raise ValueError("The student can't be its own teacher; clone it with keras.models.clone_model.")
    models = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
    for role, model in models.items():
        if not isinstance(model, keras.Model):
            raise ValueError(f"The {role} must be a keras.Model. Received: {model!r} (of type {type(model).__name__})")
        if not model.built:
            raise ValueError(f"The {role} {model.name!r} has no weights yet; call it on a batch of images first.")
        if gives_probabilities(model):
            raise ValueError(
                f"The {role} {model.name!r} ends in a softmax, and distillation needs logits. "
                + ("Remove it." if role == "student" else "Wrap it: AdaptedTeacher(teacher, ...).")
            )
    classes = {role: _classes(model) for role, model in models.items()}
    if None not in classes.values() and len(set(classes.values())) > 1:
        raise ValueError(
            f"The teacher {teacher.name!r} has {classes['teacher']} classes, the student {student.name!r} has "
            f"{classes['student']}. Give the student as many, or pick its classes among the teacher's with "
            "AdaptedTeacher(classes=...)."
        )


def _classes(model):
    """Returns the number of classes of `model`, None if it doesn't say."""
    shape = getattr(model, "output_shape", None)
    return shape[-1] if isinstance(shape, tuple) and len(shape) == 2 else None
