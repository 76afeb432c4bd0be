"""Presets: by name, from folders and from .keras files."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from gradients import compiled
from layer_checks import numpy, randomize

import keras_binaryvit as kb
from keras_binaryvit.models import ImageClassifier, Preset, PresetMetadata, presets

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SMALL = {
    "image_shape": (16, 16, 3),
    "num_classes": 3,
    "embed_dims": (12, 24),
    "depths": (1, 1),
    "num_heads": (1, 2),
    "sr_ratios": (2, 1),
    "mlp_ratios": (2, 2),
}
CLASSES = {
    "class_names": ("cat", "dog", "a bird"),
    "preprocessor": kb.layers.ImagePreprocessor((16, 16), [0.5] * 3, [0.2] * 3),
}


@pytest.fixture
def images():
    return np.random.default_rng(5).normal(size=(4, 16, 16, 3)).astype(np.float32)


def trained(**changes):
    model = kb.BinaryViT(**{**SMALL, **CLASSES, **changes}, name="small")
    randomize(model)
    return model


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "a pr\u00e9set"
    trained().save_to_preset(path)
    return path


@pytest.mark.parametrize("latent_weights, of", [(False, kb.BinaryViT), (True, ImageClassifier)])
def test_a_folder(tmp_path, images, latent_weights, of):
    model = trained(input_quantizer="ste_sign", kernel_quantizer=kb.quantizers.get("scaled_sign"))
    model.save_to_preset(tmp_path / "model", latent_weights=latent_weights)
    loaded = of.from_preset(tmp_path / "model")
    assert type(loaded) is kb.BinaryViT
    np.testing.assert_allclose(numpy(loaded(images)), numpy(model(images)), rtol=0, atol=0 if latent_weights else 1e-4)
    assert loaded.get_config() == model.get_config()
    assert loaded.class_names == CLASSES["class_names"]
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    np.testing.assert_array_equal(numpy(loaded.preprocessor(pixels)), numpy(model.preprocessor(pixels)))


def test_float_networks_too(tmp_path, images):
    model = kb.DeiT((16, 16, 3), 3, 8, 12, 1, 2, name="teacher")
    model.save_to_preset(tmp_path)
    np.testing.assert_array_equal(numpy(kb.DeiT.from_preset(tmp_path)(images)), numpy(model(images)))


def test_the_latest_preset_replaces_the_one_before(tmp_path, images):
    trained().save_to_preset(tmp_path)
    model = trained()
    model.save_to_preset(tmp_path, latent_weights=True)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.weights.h5", "metadata.json"}
    np.testing.assert_array_equal(numpy(kb.BinaryViT.from_preset(tmp_path)(images)), numpy(model(images)))


def test_a_keras_file(tmp_path, images):
    model = trained()
    model.save(tmp_path / "model.keras")
    loaded = kb.BinaryViT.from_preset(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(images)), numpy(model(images)))
    assert loaded.class_names == CLASSES["class_names"]


@pytest.mark.parametrize("how", ["bits", "latent", "keras"])
def test_another_head_keeps_the_body(tmp_path, images, how):
    model = trained()
    path = tmp_path / ("model.keras" if how == "keras" else "model")
    model.save(path) if how == "keras" else model.save_to_preset(path, latent_weights=how == "latent")
    for overrides, shape in (({"num_classes": 7}, (4, 7)), ({"include_top": False, "pooling": "avg"}, (4, 24))):
        other = kb.BinaryViT.from_preset(path, **overrides)
        assert other(images).shape == shape
        norms = (keras.Model(network.input, network.get_layer("norm").output) for network in (other, model))
        ours, theirs = (numpy(norm(images)) for norm in norms)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
        assert other.class_names == (None if "num_classes" in overrides else CLASSES["class_names"])


def test_random_weights_of_a_folder(folder):
    one, other = (kb.BinaryViT.from_preset(folder, load_weights=False) for _ in range(2))
    path = "block_0/feed_forward/expand/dense/kernel"
    kernels = [numpy(next(w for w in model.weights if w.path == path)) for model in (one, other)]
    assert np.any(kernels[0] != kernels[1])


def test_metadata(tmp_path):
    metadata = PresetMetadata("A small one", 1234, dataset="cifar10", top1=0.5)
    digest = trained().save_to_preset(tmp_path, metadata=metadata)
    written = json.loads((tmp_path / "metadata.json").read_text())
    assert written.pop("sha256").keys() == {"config.json", "weights.npz"}
    assert PresetMetadata(**written) == metadata
    assert presets.read_folder(tmp_path, digest)
    with pytest.raises(ValueError, match="SHA-256 of metadata.json"):
        presets.read_folder(tmp_path, "0" * 64)


@pytest.mark.parametrize("name", ["config.json", "weights.npz", "metadata.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "a bit"])
def test_damaged_folders(folder, name, damage):
    content = bytearray((folder / name).read_bytes())
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "truncated":
        (folder / name).write_bytes(content[: len(content) // 2])
    else:
        content[-8] ^= 1  # of metadata.json, in a digest
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match="is incomplete|is damaged|isn't the metadata") as error:
        kb.BinaryViT.from_preset(folder)
    assert name in str(error.value) or name == "metadata.json"


@pytest.mark.parametrize(
    "preset, options, message",
    [
        ("binaryvit_huge", {}, "Unknown preset 'binaryvit_huge'.*binaryvit_small"),
        ("deit_small", {}, "'deit_small' is a DeiT, not a BinaryViT: use DeiT.from_preset"),
        ("binaryvit_small", {"load_weights": True}, "no weights.*binaryvit_tiny_32_cifar10"),
        ("binaryvit_tiny_32_cifar10", {"depths": (2, 1, 1)}, "don't fit the model.*block_1"),
    ],
)
def test_what_does_not_fit(preset, options, message):
    with pytest.raises(ValueError, match=message):
        kb.BinaryViT.from_preset(preset, **options)


def test_a_folder_of_another_class(folder):
    with pytest.raises(ValueError, match="is a BinaryViT, not a DeiT"):
        kb.DeiT.from_preset(folder)


def test_presets_of_a_subclass():
    class Mine(kb.BinaryViT):
        presets = {"mine": Preset(SMALL, PresetMetadata("mine", 0))}

    assert type(ImageClassifier.from_preset("mine")) is Mine
    assert type(kb.BinaryViT.from_preset("mine")) is Mine
    assert type(Mine.from_preset("binaryvit_tiny_32")) is Mine
    assert "mine" in kb.list_presets(trained=False)
    del presets.REGISTRY["mine"]


def test_presets_with_a_typo_fail_at_once():
    with pytest.raises(TypeError, match="depts"):

        class Mine(kb.BinaryViT):
            presets = {"mine": Preset({"depts": (1, 1)}, PresetMetadata("mine", 0))}


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the same on every backend")
@pytest.mark.parametrize("name", kb.list_presets())
def test_their_parameters(name):
    kind, preset = presets.REGISTRY[name]
    assert kind.from_preset(name, load_weights=False).count_params() == preset.metadata.parameters


def test_the_folders_are_those_of_trained_presets():
    assert {path.name for path in presets.FOLDER.iterdir()} == set(kb.list_presets(trained=True))
    for name in kb.list_presets(trained=True):
        kind, preset = presets.REGISTRY[name]
        files = presets.read_folder(presets.FOLDER / name, preset.sha256)
        assert len(files["weights.npz"]) < 10e6
        written = json.loads((presets.FOLDER / name / "metadata.json").read_text())
        del written["sha256"]
        assert PresetMetadata(**written) == preset.metadata
        assert kind.from_preset(name).get_config().items() >= preset.config.items()


@pytest.mark.parametrize(
    ("preset", "expected"), [("binaryvit_tiny_32_cifar10", "logits"), ("binaryvit_32_cifar10", "logits_32")]
)
def test_cifar10(preset, expected):
    """The first 40 test images, and the logits of the model before it was packed."""
    model = kb.BinaryViT.from_preset(preset)
    with np.load(GOLDEN / "cifar10_sample.npz") as sample:
        logits = numpy(compiled(model)(model.preprocessor(sample["images"])))
        # Rounding may flip a bit, and with it a logit by some tenths.
        assert np.mean(np.abs(logits - sample[expected]) < 1e-3) > 0.9
        assert np.mean(logits.argmax(-1) == sample[expected].argmax(-1)) > 0.95
        assert np.mean(logits.argmax(-1) == sample["labels"]) > 0.5


def test_layers_that_are_not_trained_stay_so(tmp_path):
    """At any depth: a block, and a layer within another one."""
    model = kb.BinaryViT.from_preset("binaryvit_tiny_32")
    model.get_layer("block_0").trainable = False
    model.get_layer("block_1").attention.trainable = False
    trained = [variable.path for variable in model.trainable_variables]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [variable.path for variable in loaded.trainable_variables] == trained
    assert len(trained) < len(kb.BinaryViT.from_preset("binaryvit_tiny_32").trainable_variables)
