"""Trained weights as bits and magnitudes."""

import keras
import numpy as np
import pytest
from layer_checks import numpy, randomize

import keras_binaryvit as kb
from keras_binaryvit.models import packed_weights

SMALL = {
    "image_shape": (16, 16, 3),
    "num_classes": 3,
    "embed_dims": (12, 24),
    "depths": (1, 1),
    "num_heads": (1, 2),
    "sr_ratios": (2, 1),
    "mlp_ratios": (2, 2),
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
def test_the_same_logits_from_bits(images, conv_kernel_quantizer):
    model = trained(conv_kernel_quantizer=conv_kernel_quantizer)
    content = packed_weights.to_bytes(packed_weights.pack(model))
    copy = small(conv_kernel_quantizer=conv_kernel_quantizer)
    packed_weights.unpack(copy, packed_weights.from_bytes(content))
    np.testing.assert_allclose(numpy(copy(images)), numpy(model(images)), rtol=0, atol=1e-4)


def test_a_bit_for_each_weight():
    model = trained()
    packed = packed_weights.pack(model)
    kernel = numpy(model.get_layer("block_1").feed_forward.expand.dense.kernel)
    path = model.get_layer("block_1").feed_forward.expand.dense.kernel.path
    bits, magnitude = packed[f"{path}/bits"], packed[f"{path}/magnitude"]
    assert bits.nbytes == kernel.size / 8
    np.testing.assert_array_equal(np.unpackbits(bits).reshape(kernel.shape), kernel >= kernel.mean(axis=0))
    np.testing.assert_allclose(magnitude, np.abs(kernel).mean(axis=0), rtol=1e-6)
    assert packed["head/kernel"].dtype == np.float32


def test_the_same_weights_give_the_same_file():
    model = trained()
    first, second = (packed_weights.to_bytes(packed_weights.pack(model)) for _ in range(2))
    assert first == second


def test_weights_as_they_are(images):
    model, copy = trained(), small()
    packed_weights.unpack(copy, packed_weights.values(model))
    np.testing.assert_array_equal(numpy(copy(images)), numpy(model(images)))


def test_trains_further(tmp_path, images):
    model = small()
    packed_weights.unpack(model, packed_weights.pack(trained()))
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
        packed_weights.pack(model)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"embed_dims": (12, 48)}, r"patch_merging_1.*the model has"),
        ({"num_classes": 5}, r"head/kernel: shape \(24, 3\), and the model has \(24, 5\)"),
        ({"depths": (1, 2)}, "block_2.* is missing"),
        ({"sr_ratios": (1, 1)}, "block_0/attention/reduced.* is not in the model"),
    ],
)
def test_another_architecture_changes_nothing(changes, message):
    model = small(**changes)
    before = [numpy(weight) for weight in model.weights]
    with pytest.raises(ValueError, match=message):
        packed_weights.unpack(model, packed_weights.pack(trained()))
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(weight), old)
