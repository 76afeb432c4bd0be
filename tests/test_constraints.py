"""Constraints on latent weights."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_binaryvit import constraints
from keras_binaryvit.layers.quantized import QuantConv2D, QuantDense

X = np.array([[-np.inf, -1.5, -1.0, -0.3, -0.0], [0.0, 0.3, 1.0, 1.5, np.inf]], "float32")


@pytest.mark.parametrize("clip_value", [1, 0.5, 2.0])
def test_weight_clip(clip_value):
    clipped = ops.convert_to_numpy(constraints.WeightClip(clip_value)(ops.convert_to_tensor(X)))
    np.testing.assert_array_equal(clipped, np.clip(X, -clip_value, clip_value))
    assert clipped.dtype == "float32"


@pytest.mark.parametrize("name", ["weight_clip", "WeightClip"])
def test_get_a_name(name):
    constraint = constraints.get(name)
    assert isinstance(constraint, constraints.WeightClip) and constraint.clip_value == 1


def test_get_anything_keras_knows():
    constraint = constraints.WeightClip(0.5)
    copy = constraints.get(keras.constraints.serialize(constraint))
    assert isinstance(copy, constraints.WeightClip) and copy.get_config() == {"clip_value": 0.5}
    assert constraints.get(constraint) is constraint
    assert constraints.get(None) is None
    assert isinstance(constraints.get("non_neg"), keras.constraints.NonNeg)
    with pytest.raises(ValueError, match="weight_clop"):
        constraints.get("weight_clop")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (QuantDense(3, kernel_quantizer="ste_sign", kernel_constraint="weight_clip"), (4, 6)),
        (QuantConv2D(3, 2, kernel_quantizer="ste_sign", kernel_constraint="weight_clip"), (4, 5, 5, 6)),
    ],
    ids=["dense", "conv"],
)
def test_training_keeps_a_latent_kernel_inside(layer, shape):
    inputs = keras.Input(shape[1:])
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(100.0), "mse")
    rng = np.random.default_rng(0)
    for _ in range(2):
        model.train_on_batch(rng.normal(size=shape), rng.normal(size=model.compute_output_shape(shape)))
    kernel = np.abs(ops.convert_to_numpy(layer.kernel))
    assert kernel.max() == 1  # reached, never passed
