"""Trained weights as bits and magnitudes, and the presets that have some."""

from pathlib import Path

import keras
import numpy as np
import pytest
from gradients import compiled
from layer_checks import numpy, randomize

import keras_binaryvit as kb
from keras_binaryvit.models import pretrained

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SMALL = {
    "image_shape": (16, 16, 3),
    "num_classes": 3,
    "embed_dims": (12, 24),
    "depths": (1, 1),
    "num_heads": (1, 2),
    "reductions": (2, 1),
    "expansions": (2, 2),
    "drop_path_rate": 0.1,
}


def small(**changes):
    return kb.BinaryViT(**{**SMALL, **changes}, name="small")


def trained(**changes):
    """A model whose kernels, shifts and running statistics are all different from those it starts with."""
    model = small(**changes)
    randomize(model)
    return model


@pytest.fixture
def images():
    return np.random.default_rng(5).normal(size=(4, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize("conv_kernel_quantizer", ["scaled_sign", "ste_sign"])
def test_the_same_logits_from_bits(tmp_path, images, conv_kernel_quantizer):
    model = trained(conv_kernel_quantizer=conv_kernel_quantizer)
    digest = pretrained.save(model, tmp_path / "weights.npz")
    copy = small(conv_kernel_quantizer=conv_kernel_quantizer)
    pretrained.load(copy, tmp_path / "weights.npz", digest)
    np.testing.assert_allclose(numpy(copy(images)), numpy(model(images)), rtol=0, atol=1e-4)


def test_a_bit_for_each_weight():
    model = trained()
    packed = pretrained.pack(model)
    kernel = numpy(model.get_layer("block_1").feed_forward.expand.dense.kernel)
    path = model.get_layer("block_1").feed_forward.expand.dense.kernel.path
    bits, magnitude = packed[f"{path}/bits"], packed[f"{path}/magnitude"]
    assert bits.nbytes == kernel.size / 8
    np.testing.assert_array_equal(np.unpackbits(bits).reshape(kernel.shape), kernel >= kernel.mean(axis=0))
    np.testing.assert_allclose(magnitude, np.abs(kernel).mean(axis=0), rtol=1e-6)
    assert packed["head/kernel"].dtype == np.float32


def test_the_same_weights_give_the_same_file(tmp_path):
    model = trained()
    assert pretrained.save(model, tmp_path / "a") == pretrained.save(model, tmp_path / "b")


def test_trains_further(tmp_path, images):
    model = small()
    pretrained.unpack(model, pretrained.pack(trained()))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=keras.backend.backend() == "jax")
    before = [numpy(weight) for weight in model.trainable_weights]
    model.fit(images, np.arange(4) % 3, verbose=0)
    after = [numpy(weight) for weight in model.trainable_weights]
    changed = [np.any(a != b) for a, b in zip(before, after, strict=True)]
    assert np.mean(changed) > 0.8  # a unit of magnitudes above 1 has no gradient


class Graded(kb.quantizers.Quantizer):
    """Says that it has one bit, and has two magnitudes."""

    precision = 1

    def __call__(self, x):
        return keras.ops.where(keras.ops.abs(x) > 0.5, 2 * keras.ops.sign(x), keras.ops.sign(x))


def test_kernels_of_other_values_are_refused():
    model = trained(conv_kernel_quantizer=Graded())
    with pytest.raises(ValueError, match="patch_merging_1.*can't be kept as bits"):
        pretrained.pack(model)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"embed_dims": (12, 48)}, r"patch_merging_1.*the model has"),
        ({"num_classes": 5}, r"head/kernel: shape \(24, 3\), and the model has \(24, 5\)"),
        ({"depths": (1, 2)}, "block_2.* is missing"),
        ({"reductions": (1, 1)}, "block_0/attention/reduced.* is not in the model"),
    ],
)
def test_another_architecture_changes_nothing(changes, message):
    model = small(**changes)
    before = [numpy(weight) for weight in model.weights]
    with pytest.raises(ValueError, match=message):
        pretrained.unpack(model, pretrained.pack(trained()))
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(weight), old)


@pytest.mark.parametrize("damage", ["truncated", "a bit"])
def test_a_damaged_file(tmp_path, damage):
    path = tmp_path / "weights.npz"
    digest = pretrained.save(trained(), path)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[-1000:]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged: their SHA-256 is"):
        pretrained.load(small(), path, digest)


class Preset(kb.BinaryViT):
    presets = {"mine": SMALL}


@pytest.fixture
def preset(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    model = trained()
    monkeypatch.setattr(Preset, "trained", {"mine": pretrained.save(model, tmp_path / "mine.npz")})
    return model


def test_a_trained_preset(preset, images):
    model = Preset.from_preset("mine")
    np.testing.assert_allclose(numpy(model(images)), numpy(preset(images)), rtol=0, atol=1e-4)


def test_a_trained_preset_with_a_new_head(preset):
    model = Preset.from_preset("mine", num_classes=7)
    assert model.output_shape == (None, 7)
    norm = preset.get_layer("norm")
    for ours, theirs in zip(model.get_layer("norm").weights, norm.weights, strict=True):
        np.testing.assert_array_equal(numpy(ours), numpy(theirs))


def test_a_trained_preset_that_does_not_fit(preset):
    with pytest.raises(ValueError, match="don't fit the model"):
        Preset.from_preset("mine", image_shape=(32, 32, 3))


def test_cifar10():
    """The first 40 test images, and the logits of the model before it was packed."""
    model = kb.BinaryViT.from_preset("binaryvit_tiny_32_cifar10")
    preprocessor = kb.layers.ImagePreprocessor(32, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
    with np.load(GOLDEN / "cifar10_sample.npz") as sample:
        logits = numpy(compiled(model)(preprocessor.normalize(sample["images"])))
        # Rounding may flip a bit, and with it a logit by some tenths.
        assert np.mean(np.abs(logits - sample["logits"]) < 1e-3) > 0.9
        assert np.mean(logits.argmax(-1) == sample["logits"].argmax(-1)) > 0.95
        assert np.mean(logits.argmax(-1) == sample["labels"]) > 0.5


def test_all_weights_are_those_of_their_preset():
    for network in (kb.BinaryViT, kb.DeiT):
        assert set(network.trained) <= set(network.presets)
    files = {path.stem for path in pretrained.FOLDER.glob("*.npz")}
    assert files == set(kb.BinaryViT.trained)
    assert all(path.stat().st_size < 6e6 for path in pretrained.FOLDER.iterdir())


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
