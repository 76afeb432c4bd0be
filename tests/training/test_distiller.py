"""Distiller: its steps against NumPy, the frozen teacher, saving, and what wrong input says."""

import keras
import numpy as np
import pytest
from keras import ops
from layer_checks import flat_vit

import keras_binaryvit as kb
from keras_binaryvit.layers import QuantDense
from keras_binaryvit.training import Distiller

JIT = {"jit_compile": keras.backend.backend() == "jax"}
tf = pytest.importorskip("tensorflow")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def softmax(x):
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def linear(name, inputs=6, classes=4, **arguments):
    return keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(classes, **arguments)], name=name)


def batch(size=8, inputs=6, classes=4):
    rng = np.random.default_rng(0)
    return rng.normal(size=(size, inputs)).astype("float32"), rng.integers(0, classes, size)


def values(model):
    return [numpy(weight) for weight in model.weights]


def assert_equal(values, others):
    for value, other in zip(values, others, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("label_weight, temperature", [(0.0, 1.0), (0.0, 3.0), (0.4, 2.0)])
@pytest.mark.parametrize("jit", [False, True])
def test_a_step_in_numpy(label_weight, temperature, jit):
    if jit and keras.backend.backend() == "torch":
        pytest.skip("torch.compile takes a C++ compiler and minutes")
    student, teacher = linear("student"), linear("teacher")
    x, labels = batch()
    kernel, bias = values(student)
    target_kernel, target_bias = values(teacher)
    s, t = x @ kernel + bias, x @ target_kernel + target_bias

    distiller = Distiller(student, teacher, label_weight, temperature)
    distiller.compile(keras.optimizers.SGD(1.0), metrics=["accuracy"], jit_compile=jit)
    history = distiller.fit(x, labels, batch_size=8, epochs=1, shuffle=False, verbose=0).history

    one_hot = np.eye(4)[labels]
    soft, log_student = softmax(t / temperature), np.log(softmax(s / temperature))
    soft_loss = -(temperature**2) * (soft * log_student).sum(-1).mean()
    label_loss = -(one_hot * np.log(softmax(s))).sum(-1).mean()
    expected = (1 - label_weight) * soft_loss + label_weight * label_loss
    np.testing.assert_allclose(history["loss"], [expected], rtol=1e-5)
    np.testing.assert_allclose(history["accuracy"], [(s.argmax(-1) == labels).mean()])

    to_logits = (1 - label_weight) * temperature * (softmax(s / temperature) - soft)
    to_logits = (to_logits + label_weight * (softmax(s) - one_hot)) / 8
    np.testing.assert_allclose(values(student)[0], kernel - x.T @ to_logits, atol=1e-5)
    np.testing.assert_allclose(values(student)[1], bias - to_logits.sum(0), atol=1e-5)
    assert_equal(values(teacher), [target_kernel, target_bias])


def test_evaluation_is_the_students_on_labels():
    student = linear("student")
    x, labels = batch(20)
    logits = x @ values(student)[0] + values(student)[1]
    distiller = Distiller(student, linear("teacher"))
    distiller.compile("sgd", metrics=["accuracy"], **JIT)
    loss, accuracy = distiller.evaluate(x, labels, batch_size=20, verbose=0)
    np.testing.assert_allclose(accuracy, (logits.argmax(-1) == labels).mean(), rtol=1e-6)
    np.testing.assert_allclose(loss, -np.log(softmax(logits))[np.arange(20), labels].mean(), rtol=1e-5)
    np.testing.assert_allclose(distiller.predict(x, verbose=0), logits, rtol=1e-5, atol=1e-5)


def test_teacher_is_frozen_and_in_inference_mode():
    layers = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(4)]
    teacher = keras.Sequential([keras.Input((6,)), *layers])
    student = linear("student")
    before = values(teacher)
    distiller = Distiller(student, teacher)
    distiller.compile(keras.optimizers.SGD(0.0), **JIT)
    assert {v.path for v in distiller.trainable_variables} == {v.path for v in student.trainable_variables}
    x, labels = batch()
    # Dropout would give each epoch another loss.
    losses = distiller.fit(x, labels, batch_size=8, epochs=3, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    assert_equal(values(teacher), before)
    assert not teacher.trainable


def test_regularization_counts_once():
    x, labels = batch()
    losses = []
    for regularizer in (keras.regularizers.L2(0.5), None):
        student = linear("student", kernel_initializer="ones", kernel_regularizer=regularizer)
        distiller = Distiller(student, linear("teacher", kernel_initializer="zeros"), label_weight=0.3)
        distiller.compile(keras.optimizers.SGD(0.0), **JIT)
        losses += distiller.fit(x, labels, batch_size=8, verbose=0).history["loss"]
    np.testing.assert_allclose(losses[0] - losses[1], 0.5 * 6 * 4, rtol=1e-4)


def test_labels_as_probabilities():
    x, labels = batch()
    distiller = Distiller(linear("student"), linear("teacher"), label_weight=0.5)
    distiller.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True), metrics=["accuracy"], **JIT)
    history = distiller.fit(x, np.eye(4)[labels] * 0.9 + 0.025, verbose=0).history
    assert np.isfinite(history["loss"][0]) and 0 <= history["accuracy"][0] <= 1


def test_several_steps_in_one_execution():
    if keras.backend.backend() == "torch":
        pytest.skip("Keras has it on TensorFlow and JAX")
    x, labels = batch(16)
    results = []
    for steps in (1, 2):
        keras.utils.set_random_seed(1)
        student, teacher = linear("student"), linear("teacher")
        distiller = Distiller(student, teacher)
        distiller.compile(keras.optimizers.SGD(0.1), steps_per_execution=steps, **JIT)
        dataset = tf.data.Dataset.from_tensor_slices((x, labels)).batch(4)
        losses = distiller.fit(dataset, epochs=2, verbose=0).history["loss"]
        results.append([*values(student), losses])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_every_pass_of_a_data_set_is_one_epoch():
    """Keras alone makes iterators that it doesn't read; the passes in between would be lost."""
    seen = []

    def note(x, labels):
        seen.append(int(x[0, 0]))
        return np.float32(0)

    counter = tf.data.Dataset.random(seed=3, rerandomize_each_iteration=True).take(2)
    noted = counter.map(lambda n: (tf.fill((2, 6), tf.cast(n % 1000, tf.float32)), tf.zeros((2,), tf.int32)))
    noted = noted.map(lambda x, y: (x + tf.ensure_shape(tf.numpy_function(note, [x, y], tf.float32), ()), y))
    counter = tf.data.Dataset.random(seed=3, rerandomize_each_iteration=True).take(2)
    expected = [int(n % 1000) for _ in range(3) for n in counter.as_numpy_iterator()]
    distiller = Distiller(linear("student"), linear("teacher"))
    distiller.compile("sgd", metrics=["accuracy"], **JIT)
    distiller.fit(noted, epochs=3, verbose=0)
    assert seen[:6] == expected and len(set(expected)) == 6


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_mixed_precision(half):
    """Latent kernels stay float32, get gradients, and the loss is scaled where it must be."""
    binary = {"input_quantizer": "approx_sign", "kernel_quantizer": "centered_scaled_sign", "use_bias": False}
    policy = f"mixed_{half}"
    layers = [QuantDense(16, dtype=policy, **binary), kb.layers.BatchNorm(dtype=policy), keras.layers.Dense(4)]
    student = keras.Sequential([keras.Input((6,)), *layers])
    before = values(student.layers[0])
    distiller = Distiller(student, linear("teacher"))
    distiller.compile(kb.optimizers.AdamW(0.01), metrics=["accuracy"], **JIT)
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer) == (half == "float16")
    x, labels = batch(32)
    losses = distiller.fit(x, labels, batch_size=32, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    (kernel,) = student.layers[0].weights
    assert keras.backend.standardize_dtype(kernel.dtype) == "float32"
    assert student.layers[0].compute_dtype == half
    changed = numpy(kernel) - before[0]
    assert (changed != 0).mean() > 0.9
    # Steps of this size are lost where a kernel is held in half precision.
    assert len(np.unique(changed)) > 50 and not np.array_equal(numpy(kernel), numpy(ops.cast(kernel, half)))


def test_a_binary_vit_learns_from_a_deit():
    keras.utils.set_random_seed(0)
    student = flat_vit((8, 8, 1), 10, 4, embed_dim=32, depth=1, num_heads=1)
    teacher = kb.DeiT((8, 8, 1), 10, 4, embed_dim=16, depth=1, num_heads=1)
    teacher.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(16, 10)))
    distiller = Distiller(student, teacher)
    # Ten steps as they are take less time than a compilation.
    distiller.compile(kb.optimizers.AdamW(0.02), run_eagerly=keras.backend.backend() == "tensorflow", **JIT)
    images, labels = next(iter(kb.data.load("digits", "train", batch_size=64).as_numpy_iterator()))
    losses = distiller.fit(images, labels, batch_size=64, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]


# --- Saving ---


def test_saves_the_student_alone(tmp_path):
    student, teacher = linear("student"), linear("teacher")
    distiller = Distiller(student, teacher)
    distiller.compile(keras.optimizers.Adam(0.1), metrics=["accuracy"], **JIT)
    x, labels = batch()
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="loss", save_best_only=True)
    distiller.fit(x, labels, epochs=2, verbose=0, callbacks=[best])
    distiller.save(tmp_path / "last.keras")
    loaded = keras.saving.load_model(tmp_path / "last.keras")
    assert type(loaded) is type(student) and loaded.name == "student"
    assert_equal(values(loaded), values(student))
    assert type(keras.saving.load_model(tmp_path / "best.keras")) is type(student)

    # Weights: of the student and the optimizer, for training that continues.
    distiller.save_weights(tmp_path / "state.weights.h5")
    with pytest.raises(NotImplementedError, match="save its student"):
        distiller.get_config()
    here = [numpy(v) for v in distiller.optimizer.variables]
    expected = distiller.fit(x, labels, epochs=2, shuffle=False, verbose=0).history["loss"]
    after = values(student)
    continued = Distiller(linear("student"), teacher)
    continued.compile(keras.optimizers.Adam(0.1), metrics=["accuracy"], **JIT)
    continued.optimizer.build(continued.trainable_variables)
    continued.load_weights(tmp_path / "state.weights.h5")
    assert_equal([numpy(v) for v in continued.optimizer.variables], here)
    np.testing.assert_allclose(continued.fit(x, labels, epochs=2, shuffle=False, verbose=0).history["loss"], expected)
    for value, other in zip(values(continued.student), after, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-6)


def test_no_file_holds_the_teacher(tmp_path):
    student, teacher = linear("student"), wide_teacher()
    distiller = Distiller(student, teacher)
    distiller.compile("sgd", **JIT)
    distiller.save_weights(tmp_path / "state.weights.h5")
    distiller.save(tmp_path / "student.keras")
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 100_000 < 4 * teacher.count_params()


def wide_teacher():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(10_000), keras.layers.Dense(4)])


# --- Wrong input ---


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"teacher": linear("tutor", classes=5)}, "'tutor' has 5 classes, the student 'student' has 4"),
        ({"teacher": linear("tutor", activation="softmax")}, "teacher 'tutor' ends in a softmax.*AdaptedTeacher"),
        ({"student": linear("pupil", activation="softmax")}, "student 'pupil' ends in a softmax.*Remove it"),
        ({"teacher": keras.Sequential([keras.layers.Dense(4)], name="tutor")}, "'tutor' has no weights yet"),
        ({"teacher": "deit_small"}, "teacher must be a keras.Model. Received: 'deit_small'"),
        ({"label_weight": 1.0}, "label_weight=1.0"),
        ({"temperature": 0.0}, "temperature=0"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        Distiller(**{"student": linear("student"), "teacher": linear("teacher"), **arguments})


def test_rejects_its_own_teacher():
    student = linear("student")
    with pytest.raises(ValueError, match="its own teacher"):
        Distiller(student, student)


def test_needs_logits_from_somewhere():
    distiller = Distiller(linear("student"))
    distiller.compile("sgd", **JIT)
    with pytest.raises(ValueError, match="no teacher, and the batches don't bring"):
        distiller.fit(*batch(), verbose=0)


def test_takes_logits_from_one_place():
    distiller = Distiller(linear("student"), linear("teacher"))
    distiller.compile("sgd", **JIT)
    x, labels = batch()
    with pytest.raises(ValueError, match="teacher=None"):
        distiller.fit(x, {"labels": labels, "teacher_logits": np.zeros((8, 4), "float32")}, verbose=0)


def test_cached_logits_of_other_classes():
    distiller = Distiller(linear("student"))
    distiller.compile("sgd", **JIT)
    x, labels = batch()
    with pytest.raises(ValueError, match=r"same classes.*\(.*5\).*\(.*4\)"):
        distiller.fit(x, {"labels": labels, "teacher_logits": np.zeros((8, 5), "float32")}, verbose=0)


def test_empty_data_set():
    distiller = Distiller(linear("student"), linear("teacher"))
    distiller.compile("sgd", **JIT)
    dataset = tf.data.Dataset.from_tensor_slices(batch()).batch(16, drop_remainder=True)
    with pytest.raises(ValueError, match="no batches.*drop_remainder"):
        distiller.fit(dataset, verbose=0)


def test_nan_ends_training_before_it_is_saved(tmp_path):
    student = linear("student")
    distiller = Distiller(student, linear("teacher"))
    distiller.compile(keras.optimizers.SGD(0.1), **JIT)
    x, labels = batch(16)
    x[12, 0] = np.nan
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{batch}.keras", save_freq=1)
    with pytest.raises(RuntimeError, match="loss encountered at batch 3"):
        distiller.fit(x, labels, batch_size=4, shuffle=False, verbose=0, callbacks=save)
    assert len(list(tmp_path.iterdir())) == 3
