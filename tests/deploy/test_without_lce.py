"""Where there is no Larq Compute Engine: what needs it says so in one sentence, on every backend."""

import sys

import keras
import numpy as np
import pytest
from test_tflite import build

import keras_binaryvit as kb
from keras_binaryvit.deploy.lce import lce_interpreter


@pytest.fixture(autouse=True)
def without_lce(monkeypatch):
    monkeypatch.setitem(sys.modules, "larq_compute_engine", None)


@pytest.fixture
def flatbuffer():
    return build([("x", (1, 2), "float32", None), ("y", (1, 2), "float32", None)], [("ABS", (0,), (1,), None)])


@pytest.mark.parametrize("ops", ["lce", "fused"])
def test_convert(ops):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    with pytest.raises(ImportError, match=r"need the Larq Compute Engine, .* `pip install 'keras-binaryvit\[lce\]'`"):
        kb.deploy.convert(model, ops)


def test_predict(flatbuffer):
    with pytest.raises(ImportError, match="need the Larq Compute Engine"):
        kb.deploy.predict(flatbuffer, np.zeros((3, 2)))


def test_its_interpreter_and_numpy_2(flatbuffer, monkeypatch):
    monkeypatch.setattr("keras_binaryvit.deploy.lce._require_lce", lambda: None)
    monkeypatch.setattr(np, "__version__", "2.4.6")
    with pytest.raises(ImportError, match="compiled for NumPy 1, and NumPy 2.4.6 is installed"):
        lce_interpreter(flatbuffer)
