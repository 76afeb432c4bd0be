"""The authors' implementation, number for number: recordings of it in tests/golden, loaded through their own names."""

import keras
import numpy as np
import parity
import pytest

import keras_binaryvit as kb


@pytest.fixture(scope="module", params=parity.RECORDINGS)
def recording(request):
    return parity.Recording(request.param)


@pytest.fixture(scope="module")
def model(recording):
    """With the recorded weights, which the tests leave as they are."""
    return recording.model()


# Inference: embeddings, norm, logits, and of each block its output, 6 values inside and 2 attention maps, as far as
# they are recorded; the pyramid also has 3 mergings.
COUNTS = {
    "pyramid_mini": {"parameters": 136111, "eval": 6 + 5 * 9, "gradients": 395, "statistics": 112},
    "flat_row1_cls": {"parameters": 67740, "eval": 3 + 2 * 2, "gradients": 118, "statistics": 38},
    "flat_row4_branch_ls": {"parameters": 68796, "eval": 1 + 2},
    "deit_fp": {"parameters": 62650, "eval": 3 + 2, "gradients": 40},
}


def test_class_and_size(recording, model):
    name = recording.config["name"]
    expected = kb.DeiT if name == "deit_fp" else kb.BinaryViT
    assert type(model) is expected
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == COUNTS[name]["parameters"]


def test_eval_outputs_and_intermediates(recording, model):
    errors = recording.eval_errors(model)
    assert len(errors) == COUNTS[recording.config["name"]]["eval"]
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize(
    "name, mode",
    [
        ("pyramid_mini", "train"),
        ("pyramid_mini", "evalgrad"),
        ("flat_row1_cls", "train"),
        ("flat_row1_cls", "evalgrad"),
        ("deit_fp", "evalgrad"),  # without BN and dropout the same as train
    ],
)
def test_loss_and_gradients_and_running_statistics(name, mode):
    recording = parity.Recording(name)
    model = recording.model()
    step = parity.train_step(model, recording.images, recording.labels, training=mode == "train")
    errors = recording.step_errors(model, mode, step)
    assert len(errors["gradients"]) == COUNTS[name]["gradients"]
    assert errors["logits"] < 1e-5
    assert errors["loss"] < 1e-5
    assert max(errors["gradients"].values()) < 1e-4, errors["gradients"]
    assert errors["zero_gradients"] < 1e-6
    if mode == "train":
        errors = recording.buffer_errors(model)
        assert len(errors) == COUNTS[name]["statistics"]
        assert max(errors.values()) < 1e-5, errors


@pytest.mark.once
@pytest.mark.parametrize("branches", [False, True], ids=["row 2", "row 3"])
@pytest.mark.parametrize("training", [False, True])
def test_other_rows_are_row_4_with_neutral_parameters(branches, training):
    recording = parity.Recording("flat_row4_branch_ls")
    neutral = {}
    for name, array in recording.state.items():
        if ".layerscale." in name or (".layerscale_" in name and not branches):
            one = ".layerscale." in name and name.endswith(".alpha")
            array = np.full_like(array, 1.0 if one else 0.0)
        neutral[name] = array
    row = {k: v for k, v in neutral.items() if ".layerscale." not in k and (branches or ".layerscale_" not in k)}
    model, row_4 = recording.model(row), recording.model(neutral)
    assert (model.use_class_token, model.use_pooling_branches, model.use_affine) == (False, branches, False)
    assert (row_4.use_class_token, row_4.use_pooling_branches, row_4.use_affine) == (False, True, True)

    expected_logits, _, expected = parity.train_step(row_4, recording.images, recording.labels, training)
    logits, _, gradients = parity.train_step(model, recording.images, recording.labels, training)
    assert parity.relative_error(logits, expected_logits) < 1e-6
    parameters = kb.torch_checkpoints.torch_parameters(row_4)
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for name, parameter in kb.torch_checkpoints.torch_parameters(model).items():
        if id(parameter.variable) in gradients:
            difference = np.abs(gradients[id(parameter.variable)] - expected[id(parameters[name].variable)]).max()
            assert difference < 1e-5 * largest, name


def test_attention_of_the_teacher():
    """Its scores, which the recording in the repository leaves out, once more in NumPy."""
    recording = parity.Recording("deit_fp")
    model = recording.model()
    x = model.get_layer("tokens")(model.get_layer("patch_embedding")(recording.images))
    h = model.get_layer("block_0_attention_norm")(x)
    outputs, scores = model.get_layer("block_0_attention")(h, h, return_attention_scores=True)
    h = keras.ops.convert_to_numpy(h)
    prefix = "vit.encoder.layer.0.attention"

    def dense(name, x):
        return x @ recording.state[f"{name}.weight"].T + recording.state[f"{name}.bias"]

    query, key, value = (
        dense(f"{prefix}.attention.{name}", h).reshape(4, 65, 3, 16).transpose(0, 2, 1, 3)
        for name in ("query", "key", "value")
    )
    expected = np.exp(query @ key.transpose(0, 1, 3, 2) / 4)
    expected /= expected.sum(axis=-1, keepdims=True)
    attended = (expected @ value).transpose(0, 2, 1, 3).reshape(4, 65, 48)
    assert parity.relative_error(scores, expected) < 1e-5
    assert parity.relative_error(outputs, dense(f"{prefix}.output.dense", attended)) < 1e-5
