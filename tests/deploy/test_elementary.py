"""Functions that TFLite has no operator for: accurate to float32, and nothing of them left in the frozen model."""

import math

import keras
import numpy as np
import pytest
from deploy_checks import assert_same, functional, images
from keras import layers, ops
from layer_checks import numpy

import keras_binaryvit as kb
from keras_binaryvit.deploy.elementary import erf
from keras_binaryvit.models.deit import exact_gelu

RANGES = {
    ops.erf: (math.erf, -6, 6),
    ops.arccos: (math.acos, -1, 1),
    ops.arccosh: (math.acosh, 1.1, 50),
    ops.arcsin: (math.asin, -1, 1),
    ops.arcsinh: (math.asinh, -20, 20),
    ops.arctan: (math.atan, -20, 20),
    ops.arctanh: (math.atanh, -0.99, 0.99),
    ops.cosh: (math.cosh, -5, 5),
    ops.sinh: (math.sinh, -5, 5),
    ops.softsign: (lambda x: x / (1 + abs(x)), -20, 20),
    ops.tan: (math.tan, -1.5, 1.5),
}


@pytest.mark.parametrize("function", RANGES, ids=lambda function: function.__name__)
def test_functions(function):
    expected, low, high = RANGES[function]
    x = np.linspace(low, high, 4000, dtype="float32").reshape(1, -1)
    inputs = keras.Input((4000,))
    frozen = kb.deploy.freeze(keras.Model(inputs, function(inputs)), check=False)
    assert not any(type(operation).__name__ == function.__name__.capitalize() for operation in frozen.operations)
    expected = np.array([expected(float(value)) for value in x[0]])
    np.testing.assert_allclose(numpy(frozen(x))[0], expected, rtol=2e-6, atol=2e-6)


def test_erf_everywhere():
    x = np.float32([-np.inf, -1e30, -4, -1e-30, 0, 1e-30, 4, np.inf])
    np.testing.assert_allclose(numpy(erf(ops.convert_to_tensor(x))), [math.erf(float(v)) for v in x], atol=2e-7)


@pytest.mark.parametrize(
    "layer",
    [
        lambda x: layers.Activation("gelu")(x),
        lambda x: layers.Dense(8, activation="gelu")(x),
        lambda x: layers.DepthwiseConv2D(3, activation="gelu")(x),
        lambda x: kb.layers.QuantDense(8, activation="gelu", input_quantizer="ste_sign", kernel_quantizer="ste_sign")(
            x
        ),
        lambda x: keras.activations.gelu(x),
        lambda x: layers.Lambda(lambda x: 0.5 * x * (1 + ops.erf(x / np.sqrt(2))))(x),
    ],
    ids=["activation", "dense", "depthwise", "quantized", "function", "by hand"],
)
def test_gelu_wherever_it_stands(layer):
    model = functional((5, 5, 8), layer)
    frozen = kb.deploy.freeze(model)
    assert_same(frozen, model, images(model), exceptions=1)
    assert not {"Gelu", "Erf"} & {type(operation).__name__ for operation in frozen.operations}
    activations = {getattr(operation, "activation", exact_gelu) for operation in frozen.operations}
    assert activations <= {exact_gelu, keras.activations.linear}  # of which the converters make one operator


def test_gelu_has_the_sign_of_keras_own():
    """A binary layer may read it: 0 is 1 there, and the least number below it -1."""
    x = np.linspace(-12.9, 3, 4000, dtype="float32").reshape(1, -1)
    model = keras.Sequential([keras.Input((4000,)), layers.Activation("gelu")])
    frozen = kb.deploy.freeze(model)
    # XLA's erf goes below -1 by a rounding here and there; the converters' operator doesn't.
    assert np.mean((numpy(frozen(x)) < 0) != (x < 0)) <= (1e-3 if keras.backend.backend() == "jax" else 0)
    np.testing.assert_allclose(numpy(frozen(x)), numpy(model(x)), atol=1e-6)


def test_approximate_gelu_stays():
    frozen = kb.deploy.freeze(functional((8,), lambda x: keras.activations.gelu(x, approximate=True)))
    assert "Gelu" in {type(operation).__name__ for operation in frozen.operations}


def test_argmax():
    model = functional((4, 8), lambda x: ops.argmax(layers.Dense(5)(x), axis=-1))
    x = images(model)
    frozen = kb.deploy.freeze(model)
    np.testing.assert_array_equal(numpy(frozen(x)), numpy(model(x)))
    assert "Argmax" not in {type(operation).__name__ for operation in frozen.operations}
