"""BinaryKernels: what layers made of binary ones tell the kernels inside them."""

import keras
import numpy as np
import pytest
from layer_checks import check_layer, float64

from keras_binaryvit import constraints, layers
from keras_binaryvit.layers.quantized import QuantizedKernel

CREATE = {
    "projection": (lambda **options: layers.BinaryProjection(4, **options), 1),
    "feed-forward": (lambda **options: layers.BinaryFeedForward(2, **options), 2),
    "attention": (lambda **options: layers.BinarySelfAttention(2, 2, **options), 5),
    "block": (lambda **options: layers.BinaryTransformerBlock(2, 2, 2, **options), 7),
    "merging": (lambda **options: layers.PatchMerging(8, **options), 1),
    "real merging": (lambda **options: layers.PatchMerging(8, binary=False, **options), 1),
}
OPTIONS = {"kernel_initializer": "he_uniform", "kernel_regularizer": "l2", "kernel_constraint": "weight_clip"}
SHAPE = (None, 4, 4, 4)


def kernels_of(layer):
    return [part for part in layer._flatten_layers() if isinstance(part, QuantizedKernel)]


@pytest.mark.parametrize("name", CREATE)
def test_arguments_reach_all_kernels(name):
    create, count = CREATE[name]
    layer = create(**OPTIONS)
    layer.build(SHAPE)
    kernels = kernels_of(layer)
    assert len(kernels) == count
    for kernel in kernels:
        assert isinstance(kernel.kernel_initializer, keras.initializers.HeUniform)
        assert isinstance(kernel.kernel.regularizer, keras.regularizers.L2)
        assert isinstance(kernel.kernel.constraint, constraints.WeightClip)
    assert len(layer.losses) == count
    # One initializer object gives the same values each time: no two kernels share it.
    values = [float64(kernel.kernel).reshape(-1)[:16] for kernel in kernels]
    assert not any(np.array_equal(a, b) for i, a in enumerate(values) for b in values[:i])


@pytest.mark.parametrize("name", ["feed-forward", "merging"])
def test_are_saved(name):
    check_layer(CREATE[name][0](**OPTIONS), (2, *SHAPE[1:]), signs=True)


@pytest.mark.parametrize("name", CREATE)
def test_configs_without_them_load(name):
    """As layers had before these arguments."""
    layer = CREATE[name][0]()
    config = layer.get_config()
    old = {key: value for key, value in config.items() if key not in OPTIONS and "initializer" not in key}
    assert type(layer).from_config(old).get_config() == config
    assert all(config[key] is None for key in OPTIONS)


def test_a_function_initializes():
    layer = layers.BinaryProjection(4, kernel_initializer=lambda shape, dtype=None: keras.ops.full(shape, 0.25, dtype))
    layer.build((None, 4))
    np.testing.assert_array_equal(float64(layer.dense.kernel), np.full((4, 4), 0.25))


def test_patch_embedding():
    options = {"kernel_constraint": "weight_clip", "kernel_regularizer": "l1", "kernel_initializer": "ones"}
    options |= {"bias_initializer": "ones", "position_embedding_initializer": keras.initializers.Constant(3)}
    layer = layers.PatchEmbedding(4, 2, **options)
    layer.build((None, 4, 4, 3))
    convolution = layer.convolution
    assert isinstance(convolution.kernel.constraint, constraints.WeightClip)
    assert isinstance(convolution.kernel.regularizer, keras.regularizers.L1)
    assert (float64(convolution.kernel) == 1).all() and (float64(convolution.bias) == 1).all()
    assert (float64(layer.position_embedding) == 3).all()
    check_layer(layers.PatchEmbedding(4, 2, **options), (2, 4, 4, 3))
    merging = layers.PatchMerging(8, position_embedding_initializer="ones")
    merging.build(SHAPE)
    assert (float64(merging.position_embedding) == 1).all()
