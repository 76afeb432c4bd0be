"""Files that version 0.1 wrote load with the same outputs.

The files in tests/golden hold random weights; models_0_1.npz holds images and what 0.1 computed for them on TensorFlow.
"""

import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from gradients import compiled
from layer_checks import numpy

import keras_binaryvit as kb

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ["pyramid", "flat", "class_token"]
FLAT = {"patch_size": 4, "embed_dims": (32,), "depths": (1,), "num_heads": (2,), "sr_ratios": (1,), "mlp_ratios": (2,)}
ARGUMENTS = {
    "pyramid": {
        "patch_size": 2,
        **{"embed_dims": (32, 64), "depths": (1, 1), "num_heads": (1, 2), "sr_ratios": (2, 1), "mlp_ratios": (2, 1)},
        "drop_path_rate": 0.1,
    },
    "flat": {**FLAT, "use_patch_norm": False},
    "class_token": {
        **FLAT,
        **{"use_patch_norm": False, "use_class_token": True, "use_pooling_branches": False, "use_affine": False},
        "kernel_quantizer": "scaled_sign",
    },
}


@pytest.fixture(scope="module")
def recorded():
    return dict(np.load(GOLDEN / "models_0_1.npz"))


def assert_same(model, recorded, name):
    # Backends add up floats in different orders; one flipped sign would change a logit by far more.
    outputs = numpy(compiled(model)(recorded["images"]))
    np.testing.assert_allclose(outputs, recorded[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_models(recorded, name):
    model = keras.saving.load_model(GOLDEN / f"{name}_0_1.keras")
    assert type(model) is kb.BinaryViT
    assert_same(model, recorded, name)
    config = model.get_config()
    assert {key: config[key] for key in ARGUMENTS[name] if key != "kernel_quantizer"} == {
        key: value for key, value in ARGUMENTS[name].items() if key != "kernel_quantizer"
    }


@pytest.mark.parametrize("name", NAMES)
def test_weights(recorded, name, tmp_path):
    with zipfile.ZipFile(GOLDEN / f"{name}_0_1.keras") as file:
        file.extract("model.weights.h5", tmp_path)
    model = kb.BinaryViT((16, 16, 3), 5, **ARGUMENTS[name])
    model.load_weights(tmp_path / "model.weights.h5")
    assert_same(model, recorded, name)
