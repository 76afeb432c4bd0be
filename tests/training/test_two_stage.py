"""Two stages: real kernels under binary activations, then the same weights in a binary model."""

import keras
import numpy as np
import pytest
from keras import ops
from layer_checks import flat_vit, normal, np_sign, randomize

import keras_binaryvit as kb
from keras_binaryvit.layers import QuantConv2D, QuantDense
from keras_binaryvit.training import copy_weights, with_full_precision_kernels


def pyramid():
    return kb.BinaryViT((8, 8, 1), 10, 2, (8, 16), (1, 1), (1, 2), (2, 1), (2, 2))


def flat():
    return flat_vit((8, 8, 1), 10, 4, embed_dim=8, depth=1, num_heads=1)


def quantized_layers(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, QuantDense | QuantConv2D)]


def small_network():
    binary = {"input_quantizer": "ste_sign", "kernel_quantizer": "scaled_sign"}
    inputs = keras.Input((4, 4, 2))
    x = QuantConv2D(3, 2, **binary, name="convolution")(inputs)
    x = keras.Sequential([QuantDense(5, **binary, name="dense")], name="nested")(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("create", [pyramid, flat])
def test_models(create):
    model = randomize(create())
    real = with_full_precision_kernels(model)
    assert type(real) is type(model)
    assert [w.path for w in real.weights] == [w.path for w in model.weights]
    for ours, theirs in zip(real.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs))
    assert len(quantized_layers(real)) == len(quantized_layers(model)) > 5
    for layer in quantized_layers(real):
        assert layer.kernel_quantizer is None and layer.input_quantizer is not None
    assert all(layer.is_binary for layer in quantized_layers(model))

    x = normal(2, 8, 8, 1)
    assert not np.allclose(ops.convert_to_numpy(real(x)), ops.convert_to_numpy(model(x)), atol=1e-3)
    randomize(real, seed=2)
    copy_weights(real, model)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(with_full_precision_kernels(model)(x)), ops.convert_to_numpy(real(x))
    )


def test_any_network_multiplies_signs_by_its_latent_kernels():
    model = small_network()
    real = with_full_precision_kernels(model)
    x = normal(2, 4, 4, 2)
    convolution, dense = real.get_layer("convolution"), real.get_layer("nested").get_layer("dense")
    kernel = ops.convert_to_numpy(convolution.kernel)
    windows = np.lib.stride_tricks.sliding_window_view(np_sign(x), (2, 2), axis=(1, 2))
    hidden = np.einsum("bhwcij,ijco->bhwo", windows, kernel)
    expected = np_sign(hidden) @ ops.convert_to_numpy(dense.kernel)
    np.testing.assert_allclose(ops.convert_to_numpy(real(x)), expected, rtol=1e-5, atol=1e-5)


def test_already_real():
    with pytest.raises(ValueError, match="'plain' has no latent kernels"):
        with_full_precision_kernels(keras.Sequential([keras.Input((3,)), QuantDense(2)], name="plain"))


def test_frozen():
    frozen = kb.deploy.freeze(small_network())
    with pytest.raises(ValueError, match="no latent kernels"):
        with_full_precision_kernels(frozen)


def test_models_that_differ():
    source, target = flat(), flat_vit((8, 8, 1), 10, 4, embed_dim=8, depth=1, num_heads=1, use_pooling_branches=False)
    before = [ops.convert_to_numpy(weight) for weight in target.weights]
    with pytest.raises(ValueError, match=r"differ in \d+ of \d+ weights[\s\S]*branches/.*\(8,\) - norm/gamma"):
        copy_weights(source, target)
    for weight, value in zip(target.weights, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), value)
