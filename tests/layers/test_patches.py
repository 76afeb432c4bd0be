"""PatchEmbedding and PatchMerging."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_checks import (
    assert_close,
    check_layer,
    few_examples,
    float64,
    normal,
    np_norm,
    np_patches,
    np_pooled,
    np_rprelu,
    np_shortcut,
    np_sign,
    numpy,
    randomize,
)

import keras_binaryvit as kb
from keras_binaryvit.layers import PatchEmbedding, PatchMerging

small = st.integers(1, 3)


@few_examples
@given(small, small, small, small, small, small)
def test_embedding_is_a_keras_layer(batch, rows, columns, channels, patch_size, embed_dim):
    check_layer(PatchEmbedding(embed_dim, patch_size), (batch, rows * patch_size, columns * patch_size, channels))


@few_examples
@given(small, small, small, small, small)
def test_merging_is_a_keras_layer(batch, rows, columns, channels, copies):
    check_layer(PatchMerging(channels * copies), (batch, 2 * rows, 2 * columns, channels), signs=True)


@pytest.mark.parametrize("embed_dim", [2, 5])
def test_real_merging_is_a_keras_layer(embed_dim):
    check_layer(PatchMerging(embed_dim, binary=False), (2, 4, 2, 3))


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_embedding(patch_size):
    layer, x = PatchEmbedding(5, patch_size), normal(2, 8, 4, 3)
    layer.build(x.shape)
    randomize(layer)
    product = np.einsum("bhwpqc,pqcd->bhwd", np_patches(x, patch_size), float64(layer.convolution.kernel))
    expected = np_norm(layer.norm, product + float64(layer.convolution.bias)) + float64(layer.position_embedding)
    assert_close(numpy(layer(x)), expected)


def test_embedding_of_overlapping_patches():
    layer, x = PatchEmbedding(5, 2, kernel_size=3), normal(2, 8, 4, 3)
    check_layer(layer, x.shape)
    randomize(layer)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 1), (0, 1), (0, 0)))  # TensorFlow's "same" of an even side
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    product = np.einsum("bhwcpq,pqcd->bhwd", windows, float64(layer.convolution.kernel))
    expected = np_norm(layer.norm, product + float64(layer.convolution.bias)) + float64(layer.position_embedding)
    assert_close(numpy(layer(x)), expected)


def test_embedding_with_a_class_token():
    layer, x = PatchEmbedding(5, 2, use_norm=False, use_class_token=True), normal(2, 8, 4, 3)
    check_layer(layer, x.shape)
    product = np.einsum("bhwpqc,pqcd->bhwd", np_patches(x, 2), float64(layer.convolution.kernel))
    patches = (product + float64(layer.convolution.bias)).reshape(2, 8, 5)
    tokens = np.concatenate([np.broadcast_to(float64(layer.class_token), (2, 1, 5)), patches], axis=1)
    assert_close(numpy(layer(x)), (tokens + float64(layer.position_embedding)[:, 0])[:, :, None])
    assert not any("norm" in weight.path for weight in layer.weights)


def test_embedding_starts_as_the_authors_code_does():
    layer = PatchEmbedding(64, 4)
    layer.build((None, 32, 32, 16))
    for weight in (layer.convolution.kernel, layer.convolution.bias):
        assert 0.9 / 16 < np.abs(float64(weight)).max() <= 1 / 16  # U(+-1 / sqrt(fan_in))
    position = float64(layer.position_embedding)
    assert position.shape == (8, 8, 64)
    # A normal distribution cut off at two standard deviations; Keras draws it so that 0.02 is the uncut deviation, and
    # leaves a value beyond in some hundred thousands on PyTorch.
    assert 0.016 < position.std() < 0.0205 and np.sort(np.abs(position).ravel())[-4] <= 0.0401


@pytest.mark.parametrize("channels, embed_dim", [(4, 4), (4, 8), (3, 9)])
def test_binary_merging(channels, embed_dim):
    layer, x = PatchMerging(embed_dim), normal(2, 4, 6, channels)
    layer.build(x.shape)
    randomize(layer)
    y = np_norm(layer.input_norm, x)
    kernel = float64(layer.convolution.kernel)
    kernel = np.abs(kernel).mean(axis=(0, 1, 2)) * np_sign(kernel)  # a convolution's kernel is not centered
    product = np.einsum("bhwpqc,pqcd->bhwd", np_patches(np_sign(y + float64(layer.shift.shift)), 2), kernel)
    merged = np_norm(layer.norm, product) + np_shortcut(np_pooled(y, 2), embed_dim)
    assert_close(numpy(layer(x)), np_rprelu(layer.activation, merged) + float64(layer.position_embedding))


@pytest.mark.parametrize("channels, embed_dim", [(4, 8), (4, 6), (4, 3)])
def test_real_merging(channels, embed_dim):
    layer, x = PatchMerging(embed_dim, binary=False), normal(2, 4, 6, channels)
    layer.build(x.shape)
    randomize(layer)
    y = np_norm(layer.input_norm, x)
    product = np.einsum("bhwpqc,pqcd->bhwd", np_patches(y, 2), float64(layer.convolution.kernel))
    assert_close(numpy(layer(x)), np_norm(layer.norm, product) + float64(layer.position_embedding))
    assert {weight.name for weight in layer.trainable_weights} == {"kernel", "gamma", "beta", "position_embedding"}


@pytest.mark.parametrize(
    "layer, shape, message",
    [
        (PatchEmbedding(4, 3), (1, 8, 9, 3), "multiples of 3.*map 8x9"),
        (PatchEmbedding(4, 4), (1, 8, 9, 3), "multiples of 4.*map 8x9"),
        (PatchEmbedding(4), (1, 8, 8), r"\(1, 8, 8\)"),
        (PatchMerging(4), (1, 3, 4, 2), "multiples of 2.*map 3x4"),
        (PatchMerging(4, binary=False), (1, 4, 5, 2), "multiples of 2.*map 4x5"),
        (PatchMerging(4), (1, 4, 4), r"\(1, 4, 4\)"),
        (PatchMerging(6), (1, 4, 4, 4), "embed_dim=6, channels=4"),
        (PatchMerging(2), (1, 4, 4, 4), "embed_dim=2, channels=4"),
    ],
)
def test_bad_shapes(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer.build(shape)


@pytest.mark.parametrize("create", [PatchEmbedding, PatchMerging])
@pytest.mark.parametrize("shape", [(None, 8, 3), (8, None, 3), (8, 8, None)])
def test_unknown_sides(create, shape):
    with pytest.raises(ValueError, match="known shape.*None"):
        create(4)(keras.Input(shape))


@pytest.mark.parametrize("create", [PatchEmbedding, PatchMerging])
@pytest.mark.parametrize("embed_dim", [0, -4])
def test_bad_embed_dim(create, embed_dim):
    with pytest.raises(ValueError, match=str(embed_dim)):
        create(embed_dim).build((1, 8, 8, 2))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends know all sides")
def test_sides_that_tensorflow_does_not_know():
    """As of images from a generator: a whole model takes them, and each layer that needs a map's sides."""
    import tensorflow as tf

    def unknown(layer, shape):
        layer(np.zeros((1, *shape), "float32"))
        x = normal(2, *shape)
        function = tf.function(lambda x: layer(x, training=True) if layer._call_has_training_arg else layer(x))
        signature = tf.TensorSpec((None, None, None, shape[-1]))
        return numpy(function.get_concrete_function(signature)(x)), x

    for layer in (
        kb.layers.PatchEmbedding(8, 2),
        kb.layers.PatchMerging(8),
        kb.layers.BinarySelfAttention(2, 2),
        kb.layers.MultiBranchAveragePooling(),
        kb.layers.BinaryTransformerBlock(2, 2, 2),
        kb.BinaryViT((4, 6, 4), 3, 2, (8,), (1,), (2,), (1,), (2,)),
    ):
        outputs, x = unknown(layer, (4, 6, 4))
        assert outputs.shape == (2, *layer.compute_output_shape((2, 4, 6, 4))[1:])
