"""Which model a checkpoint holds: from the authors' configuration and from the tensors themselves."""

import json

import numpy as np
import parity
import pytest
from gradients import compiled
from layer_checks import flat_vit, normal, numpy, randomize

import keras_binaryvit as kb
from keras_binaryvit.torch_checkpoints import (
    create_model,
    from_torch,
    read_config,
    to_torch_state_dict,
    write_state_dict,
)

# Configurations with the authors' keys, and the models of these sizes.
FLAT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
FLAT |= {"image_size": 8, "patch_size": 2, "num_channels": 1, "qkv_bias": True, "id2label": {"0": "cat"}}
PYRAMID = {"hidden_size": [4, 8], "depths": [1, 2], "num_attention_heads": [1, 2], "intermediate_size": [8, 8]}
PYRAMID |= {"reduction_ratio": [2, 1], "image_size": [8, 16], "patch_size": 16}  # the authors' code ignores the last
SIZES = {"image_shape": (8, 8, 1), "num_classes": 5, "patch_size": 2}
FLAT_MODEL = {**SIZES, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 3}
PYRAMID_MODEL = {**SIZES, "image_shape": (8, 16, 1), "embed_dims": (4, 8), "depths": (1, 2), "num_heads": (1, 2)}
PYRAMID_MODEL |= {"sr_ratios": (2, 1), "mlp_ratios": (2, 1)}

MODELS = {
    "pyramid": (PYRAMID, lambda: kb.BinaryViT(**PYRAMID_MODEL)),
    "pyramid_fp": (PYRAMID, lambda: kb.BinaryViT(**PYRAMID_MODEL, binary_patch_merging=False)),
    "row_1": (FLAT, lambda: flat_vit(**FLAT_MODEL, use_class_token=True, use_pooling_branches=False, use_affine=False)),
    "row_2": (FLAT, lambda: flat_vit(**FLAT_MODEL, use_pooling_branches=False, use_affine=False)),
    "row_3": (FLAT, lambda: flat_vit(**FLAT_MODEL, use_affine=False)),
    "row_4": (FLAT, lambda: flat_vit(**FLAT_MODEL)),
    "teacher": (FLAT, lambda: kb.DeiT(**FLAT_MODEL)),
}


@pytest.mark.once
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_comes_back(name, tmp_path):
    config, create = MODELS[name]
    model = randomize(create())
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_state_dict(tmp_path / "model.npz", to_torch_state_dict(model))
    loaded = from_torch(tmp_path / "model.npz", config=tmp_path / "config.json")
    assert type(loaded) is type(model)
    unnamed = [{**m.get_config(), "name": None} for m in (loaded, model)]
    assert unnamed[0] == unnamed[1]
    images = normal(2, *model.image_shape)
    np.testing.assert_array_equal(numpy(loaded(images)), numpy(model(images)))


@pytest.mark.parametrize("name", parity.RECORDINGS)
def test_recordings(name):
    recording = parity.GOLDEN / name
    model = from_torch(recording.with_suffix(".npz"), config=recording.with_suffix(".json"))
    arrays = np.load(recording.with_suffix(".npz"))
    assert parity.relative_error(compiled(model)(arrays["input"].transpose(0, 2, 3, 1)), arrays["eval/logits"]) < 1e-5


def test_preset_with_the_checkpoints_classes():
    model = create_model({"classifier.bias": np.zeros(7)}, preset="deit_tiny")
    assert (type(model), model.name, model.num_classes, model.embed_dim) == (kb.DeiT, "deit_tiny", 7, 192)
    with pytest.raises(ValueError, match="missing: classifier.weight"):
        kb.torch_checkpoints.load_torch_state_dict(model, {"classifier.bias": np.zeros(7)})


def test_tensors_of_another_size_are_all_listed(tmp_path):
    state = to_torch_state_dict(MODELS["row_4"][1]())
    (tmp_path / "config.json").write_text(json.dumps({**FLAT, "hidden_size": 16, "intermediate_size": 48}))
    write_state_dict(tmp_path / "model.npz", state)
    with pytest.raises(ValueError) as error:
        from_torch(tmp_path / "model.npz", config=tmp_path / "config.json")
    message = str(error.value)
    scalars = [name for name, array in state.items() if not array.ndim or name == "classifier.bias"]
    assert len(message.splitlines()) == 1 + len(state) - len(scalars)
    assert "shape: vit.encoder.layer.1.output.dense.weight is (8, 24), the model needs (16, 48)" in message


@pytest.mark.parametrize("name", ["vit.embeddings.patch_embeddings.projection.weight", "classifier.weight"])
def test_a_missing_tensor_is_named(name, tmp_path):
    state = to_torch_state_dict(MODELS["row_1"][1]())
    del state[name]
    model = create_model(state, config=FLAT | {"num_channels": 1})
    with pytest.raises(ValueError, match=rf"\(1 problems\):\s+missing: {name} "):
        kb.torch_checkpoints.load_torch_state_dict(model, state)


@pytest.mark.parametrize(
    "config, message",
    [
        ({**FLAT, "intermediate_size": 20}, "multiple of hidden_size. Received: 20 and 8"),
        ({**FLAT, "intermediate_size": "24"}, "intermediate_size='24'"),
        ({**FLAT, "num_hidden_layers": 0}, "depths=0"),
        ({**FLAT, "num_attention_heads": 3}, "num_heads=3"),
        ({**FLAT, "image_size": [8, 8, 8]}, "image_shape"),
        ({**FLAT, "image_size": 9}, "map 9x9"),
        ({**PYRAMID, "depths": [1, 2, 3]}, r"depths=\[1, 2, 3\]"),
        ({**PYRAMID, "intermediate_size": 8}, "intermediate_size=8"),
        ({}, "no 'num_attention_heads'.*nothing"),
        *(({k: v for k, v in FLAT.items() if k != name}, f"no '{name}'") for name in list(FLAT)[:4]),
        *(({k: v for k, v in PYRAMID.items() if k != name}, f"no '{name}'") for name in list(PYRAMID)[1:5]),
    ],
)
def test_bad_configurations(config, message):
    kind = "pyramid" if isinstance(config.get("hidden_size"), list) else "row_2"
    with pytest.raises(ValueError, match=message):
        create_model(to_torch_state_dict(MODELS[kind][1]()), config=config)


@pytest.mark.parametrize("arguments", [{}, {"preset": "deit_tiny", "config": FLAT}])
def test_one_architecture_is_needed(arguments):
    with pytest.raises(ValueError, match="one of the two. Known presets: .*deit_small.*reactdeit_small"):
        create_model({}, **arguments)


def test_unknown_preset():
    with pytest.raises(ValueError, match="'deit_huge'.*deit_base"):
        create_model({}, preset="deit_huge")


def test_config_files(tmp_path):
    path = tmp_path / "config.json"
    for content in (FLAT, {"name": "a recording", "config": FLAT}):
        path.write_text(json.dumps(content))
        assert read_config(path) == FLAT
    for content, message in (("{", "no JSON"), ("[1]", "no JSON object"), ('{"config": 3}', "no JSON object")):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"config.json' .*{message}"):
            read_config(path)
    with pytest.raises(FileNotFoundError, match="missing.json"):
        read_config(tmp_path / "missing.json")
