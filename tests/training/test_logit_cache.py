"""Cached logits: each batch gets its own, whatever the pass, and a file that doesn't fit is an error."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_binaryvit as kb
from keras_binaryvit.training import Distiller, cache_logits, with_cached_logits

tf = pytest.importorskip("tensorflow")
JIT = {"jit_compile": keras.backend.backend() == "jax"}


def network(name="teacher", classes=10, seed=0):
    initializer = keras.initializers.RandomNormal(stddev=0.3, seed=seed)
    layers = [keras.layers.Flatten(), keras.layers.Dense(classes, kernel_initializer=initializer)]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers], name=name)


def load(**arguments):
    return kb.data.load("digits", "train[:200]", **{"batch_size": 48, "augment": True, "shuffle": True, **arguments})


def expected_logits(teacher, images):
    _, dense = teacher.layers
    kernel, bias = (ops.convert_to_numpy(weight) for weight in dense.weights)
    return images.reshape(len(images), -1) @ kernel + bias


def cache(path, teacher=None, dataset=None, epochs=3):
    cache_logits(teacher or network(), dataset or load(), path, epochs, verbose=False)
    return path


def missing(path, dataset):
    with pytest.raises(tf.errors.InvalidArgumentError, match="have no cached logits in .*logits.npy") as error:
        for _ in with_cached_logits(dataset, path):
            pass
    return str(error.value)


def test_each_image_of_each_pass_gets_its_logits(tmp_path):
    teacher = network()
    path = cache(tmp_path / "logits.npy", teacher)
    ours, plain = with_cached_logits(load(), path), load()
    for _ in range(3):
        count = 0
        for (images, targets), (same, labels) in zip(ours, plain.as_numpy_iterator(), strict=True):
            np.testing.assert_array_equal(images, same)
            np.testing.assert_array_equal(targets["labels"], labels)
            np.testing.assert_allclose(targets["teacher_logits"], expected_logits(teacher, same), rtol=2e-3, atol=2e-3)
            count += len(labels)
        assert count == 200
    assert ours.element_spec[1]["teacher_logits"].shape.as_list() == [None, 10]
    with pytest.raises(tf.errors.InvalidArgumentError, match="more epochs than were cached"):
        list(ours)  # a fourth pass


def test_training_equals_training_with_the_teacher(tmp_path):
    teacher = network()
    path = cache(tmp_path / "logits.npy", teacher, epochs=3)
    results = []
    for tutor, dataset in ((teacher, load()), (None, with_cached_logits(load(), path))):
        student = network("student", seed=1)
        distiller = Distiller(student, tutor, label_weight=0.2)
        distiller.compile(keras.optimizers.SGD(0.05), metrics=["accuracy"], **JIT)
        history = distiller.fit(dataset, epochs=3, verbose=0, validation_data=load(augment=False)).history
        results.append((history, ops.convert_to_numpy(student.layers[1].kernel)))
    (with_teacher, kernel), (cached, other) = results
    assert with_teacher.keys() == cached.keys() == {"loss", "accuracy", "val_loss", "val_accuracy"}
    np.testing.assert_allclose(cached["loss"], with_teacher["loss"], rtol=1e-3)
    np.testing.assert_allclose(other, kernel, atol=2e-3)


def test_a_later_call_adds_what_is_missing(tmp_path):
    teacher, calls = network(), []
    path = cache(tmp_path / "logits.npy", teacher, epochs=1)
    first = np.load(path)
    teacher.predict_on_batch = lambda images: calls.append(1) or type(teacher).predict_on_batch(teacher, images)
    cache(path, teacher, epochs=1)
    assert len(calls) == 1  # to see that it is the same teacher
    cache(path, teacher, epochs=2)
    assert len(calls) == 1 + 1 + 5
    rows = np.load(path)
    assert len(first) == 200 < len(rows) <= 400 and np.isin(first["key"], rows["key"]).all()
    assert len(np.unique(rows["key"])) == len(rows)
    assert rows.dtype["logits"].base == np.float16


def test_same_images_are_kept_once(tmp_path):
    path = cache(tmp_path / "logits.npy", dataset=load(augment=False), epochs=2)
    assert len(np.load(path)) == len(np.unique(np.concatenate([x for x, _ in load(augment=False)]), axis=0))
    shuffled_otherwise = with_cached_logits(load(augment=False, seed=9, batch_size=33), path)
    assert sum(len(images) for _ in range(3) for images, _ in shuffled_otherwise) == 600


def test_an_interruption_keeps_the_passes_before(tmp_path):
    teacher, path = network(), tmp_path / "logits.npy"
    batches = 0

    def predict(images):
        nonlocal batches
        batches += 1
        if batches > 7:
            raise KeyboardInterrupt
        return expected_logits(network(), images)

    teacher.predict_on_batch = predict
    with pytest.raises(KeyboardInterrupt):
        cache(path, teacher)
    assert len(np.load(path)) == 200 and list(tmp_path.iterdir()) == [path]


@pytest.mark.once
@pytest.mark.parametrize("arguments", [{"seed": 1}, {"augment": "random_resized_crop"}, {"image_size": 9}])
def test_another_data_set(tmp_path, arguments):
    assert "cache_logits" in missing(cache(tmp_path / "logits.npy", epochs=1), load(**arguments))


def test_a_data_set_that_was_iterated_before(tmp_path):
    path, dataset = cache(tmp_path / "logits.npy", epochs=1), load()
    next(iter(dataset))
    assert "was iterated before" in missing(path, dataset)


def test_another_teacher(tmp_path):
    path = cache(tmp_path / "logits.npy")
    before = path.read_bytes()
    for other in (network("other", seed=5), network("other", classes=9)):
        with pytest.raises(ValueError, match="another teacher than 'other'"):
            cache(path, other)
    assert path.read_bytes() == before


def test_damaged_files(tmp_path):
    path = cache(tmp_path / "logits.npy", epochs=1)
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:50], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no whole .npy file: remove it"):
            with_cached_logits(load(), path)
        with pytest.raises(ValueError, match="no whole .npy file: remove it"):
            cache(path)
    np.save(path, np.zeros((200, 10)))
    with pytest.raises(ValueError, match="wasn't written by cache_logits"):
        with_cached_logits(load(), path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        with_cached_logits(load(), tmp_path / "nothing.npy")


@pytest.mark.parametrize("value", [np.nan, 1e5])
def test_logits_that_float16_cannot_hold(tmp_path, value):
    teacher = network()
    teacher.layers[1].bias.assign([value] * 10)
    with pytest.raises(ValueError, match="not finite, or too large"):
        cache(tmp_path / "logits.npy", teacher)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments(tmp_path):
    path = tmp_path / "logits.npy"
    softmax = keras.Sequential([network(), keras.layers.Softmax()], name="soft")
    empty = load(batch_size=201, drop_remainder=True)
    for arguments, message in (
        ({"teacher": softmax}, "'soft' ends in a softmax"),
        ({"dataset": empty}, "no batches"),
        ({"epochs": 0}, "epochs=0"),
    ):
        with pytest.raises(ValueError, match=message):
            cache(path, **arguments)
    with pytest.raises(FileNotFoundError, match="folder .* doesn't exist"):
        cache(tmp_path / "no" / "logits.npy")
    cache(path, epochs=1)
    with pytest.raises(ValueError, match="batches of .images, labels"):
        with_cached_logits(load().map(lambda images, labels: images), path)
