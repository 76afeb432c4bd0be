"""TrainingCheckpoint: files that are whole or not there, what they bring back, and how training continues."""

import shutil
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import show_errors
import show_resume
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_binaryvit as kb
from keras_binaryvit.training import CheckpointError, TrainingCheckpoint

IMAGES = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
LABELS = np.arange(24) % 3


def build(units=5, optimizer="adam", dtype=None):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            kb.layers.QuantDense(units, kernel_quantizer="ste_sign", dtype=dtype),
            keras.layers.BatchNormalization(dtype=dtype),
            keras.layers.Dropout(0.5, seed=3, dtype=dtype),
            keras.layers.Dense(3, dtype=dtype),
        ]
    )
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def fit(model, checkpoints, epochs, initial_epoch=0, callbacks=(), images=IMAGES):
    model.fit(
        images,
        LABELS,
        batch_size=8,
        epochs=epochs,
        initial_epoch=initial_epoch,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, checkpoints],
    )


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of three checkpoints, and the state of training after each."""
    folder = tmp_path_factory.mktemp("run")
    states = []
    keep_states = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: states.append(state(model)))
    model = build()
    checkpoints = TrainingCheckpoint(folder, monitor="loss")
    fit(model, checkpoints, 3, callbacks=[keep_states])
    return folder, states, checkpoints.history


def assert_same_state(model, expected):
    for found, wanted in zip(state(model), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


# Continuing.


def test_killed_and_resumed(tmp_path):
    whole, resumed = show_resume.compare(tmp_path, keras.backend.backend())
    assert whole["restored"] == "0" and resumed["restored"] == "1"
    assert len(whole["losses"].split()) == 3
    assert resumed == {**whole, "restored": "1"}


def test_restore_brings_everything_back(trained):
    folder, states, history = trained
    checkpoints = TrainingCheckpoint(folder, monitor="loss")
    assert checkpoints.completed_epochs == 3
    model = build()
    assert checkpoints.restore(model) == 3
    assert_same_state(model, states[2])
    assert int(model.optimizer.iterations) == 9
    assert checkpoints.history == history and len(history["loss"]) == 3


def test_interrupted_training_continues(trained, tmp_path):
    folder, states, history = trained
    (tmp_path / "run").mkdir()
    shutil.copy(folder / "epoch-0001.npz", tmp_path / "run")
    checkpoints = TrainingCheckpoint(tmp_path / "run", monitor="loss")
    model = build()
    epoch = checkpoints.restore(model)
    fit(model, checkpoints, 3, epoch)
    assert_same_state(model, states[2])
    assert checkpoints.history == history


def test_a_new_folder(tmp_path):
    checkpoints = TrainingCheckpoint(tmp_path / "new" / "run")
    assert checkpoints.completed_epochs == checkpoints.restore(build()) == 0
    assert checkpoints.best is None and checkpoints.history == {}


def test_loss_scale_and_learning_rate(tmp_path):
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), initial_scale=8.0)
    model = build(optimizer=optimizer)
    checkpoints = TrainingCheckpoint(tmp_path, monitor=None)
    fit(model, checkpoints, 1)
    optimizer.inner_optimizer.learning_rate = 0.03
    optimizer.dynamic_scale.assign(64.0)
    fit(model, checkpoints, 2, 1)
    expected = state(model)
    other = build(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, momentum=0.9)))
    TrainingCheckpoint(tmp_path).restore(other)
    assert_same_state(other, expected)
    assert float(other.optimizer.dynamic_scale) == 64
    np.testing.assert_allclose(float(other.optimizer.learning_rate), 0.03)


def test_bfloat16_variables(tmp_path):
    model = build(dtype="bfloat16")
    fit(model, TrainingCheckpoint(tmp_path, monitor=None), 1)
    assert "bfloat16" in {variable.dtype for variable in model.variables}
    other = build(dtype="bfloat16")
    TrainingCheckpoint(tmp_path).restore(other)
    for found, wanted in zip(state(other), state(model), strict=True):
        np.testing.assert_array_equal(found.astype("float64"), wanted.astype("float64"))


def test_a_student_without_its_teacher(tmp_path):
    class Pair(keras.Model):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = build(), build(units=7)
            self.teacher.trainable = False

        def build(self, input_shape):
            pass

        def call(self, inputs, training=None):
            return self.student(inputs, training=training) + 0 * self.teacher(inputs, training=False)

    def pair():
        model = Pair()
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
        model.build((None, 6))
        return model

    model = pair()
    fit(model, TrainingCheckpoint(tmp_path, monitor=None), 1)
    with np.load(tmp_path / "epoch-0001.npz") as content:
        assert sum(name.startswith("model/") for name in content) == len(model.student.variables)
    other = pair()
    TrainingCheckpoint(tmp_path).restore(other)
    for found, wanted in zip(other.student.variables, model.student.variables, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (found, wanted)))
    student = build()
    TrainingCheckpoint(tmp_path, monitor="loss").load_best(student)
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (student.weights[0], model.student.weights[0])))


# The best and the last.


def saved(folder, values, keep, monitor="score", mode="auto"):
    """Lets TrainingCheckpoint see the epochs of a training with these values of `score`."""
    model = build()
    model.optimizer.build(model.trainable_variables)
    checkpoints = TrainingCheckpoint(folder, keep=keep, monitor=monitor, mode=mode)
    checkpoints.set_model(model)
    checkpoints.on_train_begin()
    for epoch, value in enumerate(values):
        model.layers[-1].bias.assign([epoch, epoch, epoch])
        checkpoints.on_epoch_begin(epoch)
        checkpoints.on_epoch_end(epoch, {} if value is None else {monitor: value})
    return checkpoints


@settings(max_examples=12, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.1, 0.2, 0.3, float("nan"), None]), min_size=1, max_size=6),
    keep=st.integers(1, 3),
    smallest=st.booleans(),
)
def test_the_best_and_the_last_are_kept(tmp_path_factory, values, keep, smallest):
    folder = tmp_path_factory.mktemp("run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoints = saved(folder, values, keep, "val_loss" if smallest else "val_accuracy")
    known = [(value, -index) for index, value in enumerate(values) if value is not None and value == value]
    expected = set(range(max(len(values) - keep, 0), len(values)))
    if known:
        best = -(min(known, key=lambda pair: (pair[0], -pair[1])) if smallest else max(known))[1]
        expected.add(best)
        for reader in (checkpoints, TrainingCheckpoint(folder, monitor=checkpoints.monitor)):
            assert reader.best == folder / f"epoch-{best + 1:04d}.npz"
        model = build()
        assert TrainingCheckpoint(folder, monitor=checkpoints.monitor).load_best(model) == best + 1
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(model.layers[-1].bias), [best] * 3)
    assert names(folder) == [f"epoch-{epoch + 1:04d}.npz" for epoch in sorted(expected)]


def test_mode(tmp_path):
    assert saved(tmp_path, [2.0, 1.0, 3.0], 3, "distance", mode="min").best.name == "epoch-0002.npz"


def test_monitor_that_is_not_there(tmp_path):
    with pytest.warns(UserWarning, match="have no 'val_accuracy'.*They have: accuracy, loss") as caught:
        fit(build(), TrainingCheckpoint(tmp_path), 2)
    assert len([warning for warning in caught if "val_accuracy" in str(warning.message)]) == 1
    with pytest.raises(CheckpointError, match="No checkpoint .* has a value of 'val_accuracy'"):
        TrainingCheckpoint(tmp_path).load_best(build())


# Files.


def test_a_checkpoint_is_an_npz_file(trained):
    folder, states, _ = trained
    with zipfile.ZipFile(folder / "epoch-0003.npz") as archive:
        assert archive.testzip() is None
    with np.load(folder / "epoch-0003.npz", allow_pickle=False) as content:
        np.testing.assert_array_equal(content["model/0000"], states[2][0])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_damage_is_noticed(trained, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(trained[0], folder)
    newest = folder / "epoch-0003.npz"
    content = bytearray(newest.read_bytes())
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1), "length") :]
    else:
        content[data.draw(st.integers(0, len(content) - 1), "position")] ^= 1 << data.draw(st.integers(0, 7), "bit")
    newest.write_bytes(content)
    model = build()
    with pytest.warns(UserWarning, match="epoch-0003.npz' was cut short or changed.*The checkpoint before it is used"):
        assert TrainingCheckpoint(folder).restore(model) == 2
    assert_same_state(model, trained[1][1])


def test_all_damaged(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        path.write_bytes(b"")
    model = build()
    before = [np.array(value) for value in model.get_weights()]
    with pytest.raises(CheckpointError, match=r"All checkpoints in .* are damaged \(3\).*Remove them"):
        TrainingCheckpoint(tmp_path / "run").restore(model)
    for found, wanted in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_full_disk(tmp_path):
    checkpoints = TrainingCheckpoint(tmp_path, monitor="loss")
    model = build()
    fit(model, checkpoints, 1)
    before = (tmp_path / "epoch-0001.npz").read_bytes()
    with pytest.warns(UserWarning, match="No checkpoint after epoch 2: File too large .*Training goes on"):
        show_errors.on_a_full_disk(lambda: fit(model, checkpoints, 2, 1))
    assert names(tmp_path) == ["epoch-0001.npz"]
    assert (tmp_path / "epoch-0001.npz").read_bytes() == before
    fit(model, checkpoints, 3, 2)
    assert names(tmp_path) == ["epoch-0001.npz", "epoch-0003.npz"]
    assert len(TrainingCheckpoint(tmp_path).history["loss"]) == 3


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    checkpoints = TrainingCheckpoint(tmp_path, monitor=None)
    model = build()
    fit(model, checkpoints, 1)
    model.layers[-1].bias.assign([0, np.nan, 0])
    with pytest.warns(UserWarning, match="No checkpoint after epoch 2: .*bias isn't finite"):
        checkpoints.on_epoch_end(1, {"loss": 1.0})
    assert names(tmp_path) == ["epoch-0001.npz"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".epoch-0002-1234.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("kept")
    fit(build(), TrainingCheckpoint(tmp_path, monitor=None), 1)
    assert names(tmp_path) == ["epoch-0001.npz", "notes.txt"]


def test_folder_that_cannot_be_written_to():
    with pytest.raises(OSError):
        fit(build(), TrainingCheckpoint("/proc/run"), 1)


# Another model or run.


@pytest.mark.parametrize(
    "other, message",
    [
        (lambda: build(units=4), r"another architecture; nothing was loaded.*kernel \(6, 5\).*kernel \(6, 4\)"),
        (
            lambda: build(optimizer="sgd"),
            r"another optimizer; nothing was.*momentum \(6, 5\).* nothing is there",
        ),
        (lambda: build(dtype="bfloat16"), r"another architecture.*float32 was saved.*bfloat16 is there"),
    ],
)
def test_another_model(trained, other, message):
    model = other()
    model.optimizer.build(model.trainable_variables)
    before = state(model)
    with pytest.raises(CheckpointError, match=f"(?s)epoch-0003.npz' is of {message}"):
        TrainingCheckpoint(trained[0]).restore(model)
    for found, wanted in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(found.astype("float64"), wanted.astype("float64"))


def test_another_kind_of_layer(trained):
    other = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), keras.layers.Dense(3)])
    with pytest.raises(CheckpointError, match=r"another architecture.*\n.*/quant_dense\S* .* was saved, \S*/dense_"):
        TrainingCheckpoint(trained[0], monitor="loss").load_best(other)


def test_model_that_is_not_ready(trained):
    for model in (keras.Sequential([keras.layers.Dense(3)]), keras.Sequential([keras.Input((6,))])):
        with pytest.raises(ValueError, match="must be built and compiled"):
            TrainingCheckpoint(trained[0]).restore(model)
    with pytest.raises(ValueError, match="must be built"):
        TrainingCheckpoint(trained[0], monitor="loss").load_best(keras.Sequential([keras.layers.Dense(3)]))


def test_a_folder_of_another_run_is_left_alone(trained):
    before = {path: path.read_bytes() for path in trained[0].iterdir()}
    with pytest.raises(CheckpointError, match=r"another run, the newest after epoch 3.*restore\(model\)"):
        fit(build(), TrainingCheckpoint(trained[0]), 1)
    assert {path: path.read_bytes() for path in trained[0].iterdir()} == before


def test_initial_epoch_is_not_forgotten(trained):
    checkpoints = TrainingCheckpoint(trained[0])
    model = build()
    checkpoints.restore(model)
    with pytest.raises(CheckpointError, match="pass initial_epoch=3 to fit, and first_epoch=3"):
        fit(model, checkpoints, 5)


@pytest.mark.parametrize("arguments", [{"keep": 0}, {"keep": 1.5}, {"keep": True}, {"mode": "best"}])
def test_bad_arguments(tmp_path, arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        TrainingCheckpoint(tmp_path, **arguments)
