"""BinaryTransformerBlock."""

import numpy as np
import pytest
from layer_checks import assert_close, check_layer, normal, np_block, numpy, randomize

from keras_binaryvit.layers import BinaryTransformerBlock


@pytest.mark.parametrize("heads, reduction, expansion, rate", [(1, 1, 1, 0.0), (2, 2, 3, 0.3)])
def test_is_a_keras_layer(heads, reduction, expansion, rate):
    check_layer(BinaryTransformerBlock(heads, reduction, expansion, rate), (2, 4, 2, 4), signs=True)


@pytest.mark.parametrize("heads, reduction, expansion", [(1, 1, 4), (2, 2, 2)])
def test_values(heads, reduction, expansion):
    x = normal(2, 4, 6, 4)
    layer = BinaryTransformerBlock(heads, reduction, expansion, drop_path_rate=0.5)  # no matter: at inference
    layer.build(x.shape)
    randomize(layer)
    layer.attention.binarizer.clip.assign(1.5 / (24 / reduction**2))
    assert_close(numpy(layer(x)), np_block(layer, x))


@pytest.mark.parametrize("branches, affine", [(False, False), (False, True), (True, False)])
def test_ablations(branches, affine):
    layer, x = BinaryTransformerBlock(2, use_pooling_branches=branches, use_affine=affine), normal(2, 4, 2, 4)
    check_layer(layer, x.shape, signs=True)
    layer.attention.binarizer.clip.assign(1.5 / 8)
    assert_close(numpy(layer(x)), np_block(layer, x, branches, affine))
    assert any("branches" in weight.path for weight in layer.weights) == branches
    assert any("_affine/" in weight.path for weight in layer.weights) == affine


def test_starts_with_faint_residual_branches():
    layer = BinaryTransformerBlock()
    layer.build((1, 2, 2, 3))
    np.testing.assert_allclose(numpy(layer.attention_affine.scale), 0.1)
    np.testing.assert_allclose(numpy(layer.feed_forward_affine.scale), 0.1)
    assert not any(numpy(affine.scale).any() for affine in layer.branches.affines)


def block_of_constants(rate):
    """Its attention gives 1, its feed-forward layer 10, its pooling branches 100."""
    layer = BinaryTransformerBlock(drop_path_rate=rate)
    layer.build((None, 2, 2, 3))
    for affine, constant in (
        (layer.attention_affine, 1),
        (layer.feed_forward_affine, 10),
        (layer.branches.affines[2], 100),
    ):
        affine.scale.assign(np.zeros(3))
        affine.shift.assign(np.full(3, constant))
    return layer


def test_drop_path_drops_whole_residual_branches_of_samples():
    x = normal(64, 2, 2, 3)
    added = numpy(block_of_constants(0.5)(x, training=True)) - x
    # One decision a sample and branch; what stays counts twice; the pooling branches always stay.
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1, :1], x.shape), atol=1e-4)
    values, counts = np.unique(np.rint(added[:, 0, 0, 0]), return_counts=True)
    np.testing.assert_array_equal(values, [100, 102, 120, 122])
    assert counts.min() >= 4 and counts.sum() == 64


@pytest.mark.parametrize("rate, training", [(0.5, False), (0.5, None), (0.0, True)])
def test_nothing_is_dropped(rate, training):
    x = normal(8, 2, 2, 3)
    added = numpy(block_of_constants(rate)(x, training=training)) - x
    np.testing.assert_allclose(added, 111, rtol=1e-5)


def test_rate_scales_what_is_kept():
    added = numpy(block_of_constants(0.2)(normal(64, 2, 2, 3), training=True)) - normal(64, 2, 2, 3)
    kept = {round(value, 2) for value in np.unique(added.round(2).astype("float64"))}
    assert kept <= {100.0, 101.25, 112.5, 113.75} and 113.75 in kept


@pytest.mark.parametrize(
    "name, value",
    [("num_heads", 0), ("reduction", -1), ("expansion", 1.5), ("drop_path_rate", 1.5), ("drop_path_rate", -0.5)],
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"={value}"):
        BinaryTransformerBlock(**{name: value})


@pytest.mark.parametrize(
    "shape, message",
    [((1, 3, 4, 4), "reduction=2, map 3x4"), ((1, 4, 4, 5), "channels=5"), ((1, 4, 4), r"\(1, 4, 4\)")],
)
def test_bad_shapes(shape, message):
    with pytest.raises(ValueError, match=message):
        BinaryTransformerBlock(num_heads=2, reduction=2)(normal(*shape))
