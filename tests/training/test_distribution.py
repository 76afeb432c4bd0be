"""Training on several devices and hosts: virtual devices of this machine's CPU, in processes of their own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_binaryvit as kb
from keras_binaryvit.training import distribution

pytest.importorskip("sklearn")
tf = pytest.importorskip("tensorflow")

WORKER = Path(__file__).with_name("scaling_worker.py")
# Sums in another order differ in their last bits, about 1e-7 of the sum. A binarizer doesn't pass that on, unless its
# input is so close to the threshold that a bit flips; then the loss moves by 1e-4 or more and the weights after it by
# 1e-3. Among the few thousand binarized values of five small steps none is that close. So this tells rounding, which
# is allowed, from statistics of half a batch, gradients without a factor, or lost examples, which change 1e-2.
TOLERANCE = 1e-5


def run_workers(backend, *processes):
    """Runs worker processes side by side, each with its own arguments."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(WORKER.parents[2])}
    running = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *map(str, arguments)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in processes
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors[-5000:]
    finally:
        for process in running:
            process.kill()


def trained(backend, folder):
    """Returns what a process recorded of training with one device and with two."""
    run_workers(backend, (folder / "{}.npz", "--devices", 1, 2))
    return [dict(np.load(folder / f"{devices}.npz")) for devices in (1, 2)]


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory):
    pytest.importorskip("jax")
    return trained("jax", tmp_path_factory.mktemp("jax"))


@pytest.fixture(scope="module")
def on_tensorflow(tmp_path_factory):
    return trained("tensorflow", tmp_path_factory.mktemp("tensorflow"))


def check_same_training(actual, expected):
    weights = [name for name in expected if name.startswith("weight ")]
    assert len(expected["loss"]) == 5 and len(weights) > 80
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=0, atol=TOLERANCE)
    for name in weights:
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=TOLERANCE, err_msg=name)


def test_two_devices_on_jax(on_jax):
    one, two = on_jax
    assert list(one["devices"]) == ["cpu:0"] and list(two["devices"]) == ["cpu:0", "cpu:1"]
    check_same_training(two, one)


@pytest.mark.once
def test_two_devices_on_tensorflow(on_tensorflow):
    one, two = on_tensorflow
    assert list(two["devices"]) == ["cpu:0", "cpu:1"]
    check_same_training(two, one)
    assert two["equal replicas"]


def test_two_processes_on_jax(on_jax, tmp_path):
    one, _ = on_jax
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = ("--devices", 1, "--processes", 2, "--address", address, "--process")
    files = [tmp_path / f"{process}.npz" for process in (0, 1)]
    run_workers("jax", *((file, *arguments, process) for process, file in enumerate(files)))
    records = [dict(np.load(file)) for file in files]
    for record in records:
        check_same_training(record, one)
    # Each has read its own half of every batch: the process alone joins both.
    assert [record["labels"].shape for record in records] == [(5, 8)] * 2
    np.testing.assert_array_equal(np.concatenate([record["labels"] for record in records], axis=1), one["labels"])


@pytest.mark.parametrize("name", ["on_jax", "on_tensorflow"])
def test_batches_that_dont_divide(name, request):
    _, record = request.getfixturevalue(name)
    message = "A batch must divide evenly among the 2 devices of its host: use a batch size that is a multiple of 2"
    assert str(record["odd batches"]).startswith(f"ValueError: {message}")
    assert str(record["odd batches"]).endswith("Received: a batch of 7")
    assert message in str(record["odd last batch"])
    assert record["finite"]  # the model is still there


# In this process, with one device.


backend_is = keras.backend.backend()
here = pytest.mark.skipif(backend_is == "torch", reason="not on PyTorch")


@here
@pytest.mark.parametrize("devices", [None, 1, ["cpu:0"], ["CPU:0"]])
def test_one_device(devices):
    with kb.training.distribute(devices) as found:
        assert found == kb.training.Distribution(("cpu:0",))
        assert found.shard == (0, 1)
        assert keras.distribution.distribution() is None and not tf.distribute.has_strategy()


@here
@pytest.mark.parametrize("devices", [0, 2, True, 1.0, "cpu:0", [], ["gpu:7"], ["cpu:0", "cpu:0"], [0]])
def test_bad_devices(devices):
    with pytest.raises(ValueError, match="number from 1 to 1, or a list of different ones of these: cpu:0.*devices="):
        with kb.training.distribute(devices):
            pass


@pytest.mark.skipif(backend_is != "tensorflow", reason="on TensorFlow")
@pytest.mark.parametrize("variable", ["TF_CONFIG", "KERAS_DISTRIBUTION_NUM_PROCESSES", None])
def test_tensorflow_is_for_one_host(variable, monkeypatch):
    if variable:
        monkeypatch.setenv(variable, "2")
    with pytest.raises(ValueError, match="Set KERAS_BACKEND=jax for several hosts"):
        with kb.training.distribute(**({} if variable else {"num_processes": 2})):
            pass


def test_other_backends(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(RuntimeError, match="works on JAX and TensorFlow; the Keras backend is 'torch'.*KERAS_BACKEND"):
        with kb.training.distribute():
            pass


@pytest.mark.parametrize("structure", ["images", "images, labels", "dictionary"])
def test_check_of_batches_keeps_their_contents(structure):
    images, labels = np.arange(24.0).reshape(12, 2), np.arange(12)
    arrays = {"images": images, "images, labels": (images, labels), "dictionary": ({"a": images}, labels, labels)}
    dataset = tf.data.Dataset.from_tensor_slices(arrays[structure]).batch(4)
    checked = distribution._check_batches(dataset, 2)
    assert checked.element_spec == dataset.element_spec and len(checked) == 3
    for expected, actual in zip(dataset, checked, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, expected, actual)
