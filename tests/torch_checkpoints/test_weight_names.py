"""The authors' names and layouts, on the recorded weights."""

import keras
import numpy as np
import parity
import pytest
from keras import ops

import keras_binaryvit as kb


@pytest.mark.parametrize("name", parity.RECORDINGS)
def test_round_trip_is_exact(name):
    recording = parity.Recording(name)
    state = kb.torch_checkpoints.to_torch_state_dict(recording.model())
    assert state.keys() == {name for name in recording.state if not name.endswith("num_batches_tracked")}
    for name, array in state.items():
        np.testing.assert_array_equal(array, recording.state[name], err_msg=name)


def test_full_precision_merging_round_trip():
    options = {"image_shape": (16, 16, 3), "embed_dims": (8, 24), "depths": (1, 1), "num_heads": (1, 2)}
    options |= {"sr_ratios": (2, 1), "mlp_ratios": (2, 2), "num_classes": 3, "binary_patch_merging": False}
    state = kb.torch_checkpoints.to_torch_state_dict(kb.BinaryViT(**options))
    names = {name.removeprefix("vit.encoder.patch_embed1.") for name in state if "patch_embed1" in name}
    assert {"proj.weight", "norm0.weight", "norm.bias", "position_embeddings"} <= names
    assert not {"move", "rprelu.move1"} & names
    assert state["vit.encoder.patch_embed1.proj.weight"].shape == (24, 8, 2, 2)
    other = kb.BinaryViT(**options)
    kb.torch_checkpoints.load_torch_state_dict(other, state)
    for name, array in kb.torch_checkpoints.to_torch_state_dict(other).items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


def test_every_problem_is_listed_and_the_model_unchanged():
    recording = parity.Recording("pyramid_mini")
    model = recording.model()
    before = ops.convert_to_numpy(model.variables[0])
    state = dict(recording.state)
    missing = "vit.encoder.layer.0.attention.attention.moveq"
    del state[missing]
    state["vit.extra"] = np.zeros(3)
    state["classifier.weight"] = np.zeros((10, 63), np.float32)
    state["classifier.bias"] = np.full(10, np.nan, np.float32)
    with pytest.raises(ValueError) as error:
        kb.torch_checkpoints.load_torch_state_dict(model, state)
    for part in (missing, "vit.extra", "(10, 63)", "(10, 64)", "classifier.bias", "4 problems"):
        assert part in str(error.value)
    np.testing.assert_array_equal(ops.convert_to_numpy(model.variables[0]), before)


def test_other_models_are_refused():
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(TypeError, match="Sequential"):
        kb.torch_checkpoints.load_torch_state_dict(other, {})


def test_a_stem_of_convolutions_is_refused():
    model = kb.BinaryViT.from_preset("binaryvit_32", depths=(1, 1, 1))
    with pytest.raises(ValueError, match="no counterpart of these variables of 'binaryvit_32': .*stem_convolution_0"):
        kb.torch_checkpoints.to_torch_state_dict(model)
