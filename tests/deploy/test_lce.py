import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from test_freeze import IMAGES, randomize, small_model

import keras_binaryvit as kb

pytest.importorskip("larq_compute_engine", reason="the Larq Compute Engine isn't installed")
if keras.backend.backend() != "tensorflow":
    pytest.skip("conversion needs the TensorFlow backend", allow_module_level=True)

TO_LCE = Path(__file__).parents[2] / "converters" / "to_lce.py"


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def flatbuffer(model):
    return kb.deploy.convert(model)


def test_flatbuffer_computes_what_the_model_does(model, flatbuffer):
    ops = kb.deploy.count_ops(flatbuffer)
    assert ops["LceBconv2d"] == 14
    assert ops["CONV_2D"] == 1
    result = kb.deploy.verify(model, flatbuffer, IMAGES, labels=np.zeros(4, int))
    assert result.agreement == 1
    assert result.largest_difference < 1e-5
    expected = model.predict(IMAGES, verbose=0)
    assert result.model_accuracy == np.mean(expected.argmax(-1) == 0)
    np.testing.assert_allclose(kb.deploy.predict(flatbuffer, IMAGES), expected, atol=1e-5 * np.abs(expected).max())


def test_small_has_the_ops_and_the_size_that_are_promised():
    model = kb.BinaryViT.from_preset("binaryvit_small")
    flatbuffer = kb.deploy.convert(model)
    ops = kb.deploy.count_ops(flatbuffer)
    assert ops["LceBconv2d"] == 124
    assert ops["CONV_2D"] == 1
    assert len(flatbuffer) <= 7.7e6


def test_another_design_with_padding_and_dense_layers():
    options = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign", "use_bias": False}
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(32, 3, padding="same")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = kb.layers.QuantConv2D(32, 3, padding="same", pad_values=1.0, kernel_constraint="weight_clip", **options)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Flatten()(keras.layers.MaxPooling2D()(x))
    outputs = kb.layers.QuantDense(10, **options)(x)
    model = randomize(keras.Model(inputs, outputs))
    flatbuffer = kb.deploy.convert(model)
    assert kb.deploy.count_ops(flatbuffer)["LceBconv2d"] == 2
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    assert kb.deploy.verify(model, flatbuffer, images).largest_difference < 1e-5


def test_a_layer_that_stays_float_is_an_error():
    inputs = keras.Input((4, 4, 32))
    layer = kb.layers.QuantConv2D(32, 3, input_quantizer="ste_heaviside", kernel_quantizer="ste_sign", use_bias=False)
    model = keras.Model(inputs, layer(inputs))
    with pytest.raises(kb.deploy.ConversionError, match="1 binary layers, but only 0"):
        kb.deploy.convert(model)


def test_verify_notices_another_model(model, flatbuffer):
    other = small_model()
    other.get_layer("head").kernel.assign(-other.get_layer("head").kernel)
    other.get_layer("head").bias.assign(-other.get_layer("head").bias)
    with pytest.raises(kb.deploy.VerificationError, match="agree on"):
        kb.deploy.verify(other, flatbuffer, IMAGES)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.full((1, 16, 16, 3), np.nan), "not finite"),
        (np.zeros((1, 16, 16, 1)), r"\(16, 16, 3\).*\(16, 16, 1\)"),
        (np.zeros((0, 16, 16, 3)), "no images"),
    ],
)
def test_wrong_images(model, flatbuffer, images, message):
    with pytest.raises(ValueError, match=message):
        kb.deploy.verify(model, flatbuffer, images)


def test_wrong_arguments(model, flatbuffer):
    with pytest.raises(ValueError, match="'fused'"):
        kb.deploy.convert(model, ops="fused")
    with pytest.raises(ValueError, match="Each image needs a label"):
        kb.deploy.verify(model, flatbuffer, IMAGES, labels=[1])
    with pytest.raises(ValueError, match="no TFLite flatbuffer"):
        kb.deploy.count_ops(b"nothing of the kind")
    unknown = keras.Input((None, None, 3))
    dynamic = keras.Model(unknown, keras.layers.Conv2D(2, 3)(unknown))
    with pytest.raises(ValueError, match="must be known"):
        kb.deploy.convert(dynamic)


def test_without_lce(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "larq_compute_engine", None)
    with pytest.raises(ImportError, match=r"keras-binaryvit\[lce\]"):
        kb.deploy.convert(model)


def to_lce(*arguments):
    return subprocess.run([sys.executable, str(TO_LCE), *map(str, arguments)], capture_output=True, text=True)


def test_command_line(model, tmp_path):
    model.save(tmp_path / "model.keras")
    output = tmp_path / "model.tflite"
    done = to_lce(tmp_path / "model.keras", output, "--images", 4)
    assert done.returncode == 0, done.stderr
    assert "14 LceBconv2d" in done.stdout and "agreement 100.00%" in done.stdout
    assert kb.deploy.count_ops(output.read_bytes())["LceBconv2d"] == 14


def test_command_line_refuses_a_cut_file_and_keeps_the_old_output(model, tmp_path):
    model.save(tmp_path / "model.keras")
    cut = tmp_path / "cut.keras"
    cut.write_bytes((tmp_path / "model.keras").read_bytes()[:5000])
    output = tmp_path / "model.tflite"
    output.write_bytes(b"old")
    done = to_lce(cut, output)
    assert done.returncode != 0
    assert "no whole .keras file" in done.stderr and "Traceback" not in done.stderr
    assert output.read_bytes() == b"old"
