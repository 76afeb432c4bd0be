"""predict and the interpreters: which one runs a file, inputs and outputs of all kinds, and what wrong input says."""

import sys

import numpy as np
import pytest
from test_flatbuffer import build

import keras_binaryvit as kb
from keras_binaryvit.deploy import flatbuffer as flatbuffers
from keras_binaryvit.deploy.interpreters import has_lce, interpreter_of, lce_interpreter, prepared

FLOATS = [("x", (2, 3), "float32", None), ("y", (2, 3), "float32", None)]


@pytest.fixture
def pair():
    """Returns y = |x|, for batches of two."""
    return build(FLOATS, [("ABS", (0,), (1,), None)])


@pytest.fixture
def several():
    """Returns |a| and -b, of two inputs of different shapes."""
    names = ("a", (1, 3)), ("b", (1, 2, 2)), ("c", (1, 3)), ("d", (1, 2, 2))
    tensors = [(name, shape, "float32", None) for name, shape in names]
    return build(tensors, [("ABS", (0,), (2,), None), ("NEG", (1,), (3,), None)], inputs=(0, 1), outputs=(2, 3))


def test_without_an_interpreter(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "binaryvit_runtime", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not has_lce()
    with pytest.raises(ImportError, match="pip install ./runtime"):
        interpreter_of(pair)
    with pytest.raises(
        ImportError, match=r"LCE's interpreter needs .* NumPy 1 .* pip install 'keras-binaryvit\[lce\]'"
    ):
        lce_interpreter(pair)


def test_lces_interpreter_is_for_numpy_1(monkeypatch):
    monkeypatch.setattr(np, "__version__", "2.4.6")
    assert not has_lce()


def test_batches_of_the_files_size(pair):
    pytest.importorskip("binaryvit_runtime")
    x = np.arange(-6, 6, dtype="float64").reshape(4, 3)
    np.testing.assert_array_equal(kb.deploy.run(pair, x), np.abs(x))
    assert kb.deploy.run(pair, x).dtype == np.float32
    with pytest.raises(ValueError, match="batches of 2.*Received: 3"):
        kb.deploy.run(pair, x[:3])


def test_several_inputs_and_outputs(several):
    pytest.importorskip("binaryvit_runtime")
    a, b = np.float32([[1, -2, 3], [-4, 5, 6]]), np.arange(8, dtype="float32").reshape(2, 2, 2)
    for inputs in ([a, b], (a, b), {"b": b, "a": a}):
        outputs = kb.deploy.run(several, inputs)
        assert isinstance(outputs, list)
        np.testing.assert_array_equal(outputs[0], np.abs(a))
        np.testing.assert_array_equal(outputs[1], -b)


@pytest.mark.parametrize(
    "inputs, error, message",
    [
        (np.zeros((2, 3)), ValueError, "takes 2 inputs, a, b. Received: 1 arrays"),
        ([np.zeros((2, 3)), np.zeros((2, 3))], ValueError, r"'b' takes arrays of shape \(2, 2\). Received: \(3,\)"),
        ([np.zeros((2, 3)), np.zeros((1, 2, 2))], ValueError, "as many for each input. Received: 1 for the input 'b'"),
        ([np.zeros((2, 3), int), np.zeros((2, 2, 2))], TypeError, "'a' takes float32. Received: int64"),
        ([np.full((2, 3), np.nan), np.zeros((2, 2, 2))], ValueError, "not finite"),
        ([np.zeros((0, 3)), np.zeros((0, 2, 2))], ValueError, "Received: 0"),
    ],
)
def test_inputs_that_do_not_fit(several, inputs, error, message):
    with pytest.raises(error, match=message):
        prepared(flatbuffers.read(several), inputs)


def test_integer_inputs_take_integers():
    model = flatbuffers.read(
        build([("x", (1, 2), "uint8", None), ("y", (1, 2), "uint8", None)], [("ABS", (0,), (1,), None)])
    )
    (array,) = prepared(model, np.array([[1, 255]]))
    assert array.dtype == np.uint8
    with pytest.raises(TypeError, match="'x' takes uint8. Received: float32"):
        prepared(model, np.zeros((1, 2), "float32"))
