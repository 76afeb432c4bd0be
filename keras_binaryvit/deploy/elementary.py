"""Functions that TFLite has no operator for, in operators that it has, to float32's accuracy."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_binaryvit.models.deit import exact_gelu
from keras_binaryvit.typing import Tensor

# Rational approximation of erf(x) / x in x^2 for |x| <= 4, highest power first; XLA and Eigen compute with it too.
_NUMERATOR = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
_DENOMINATOR = (
    *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03),
    *(-7.37332916720468e-03, -1.42647390514189e-02),
)


def erf(x: Tensor) -> Tensor:
    """The error function."""
    x = ops.clip(x, -4.0, 4.0)
    square = x * x
    return x * _polynomial(_NUMERATOR, square) / _polynomial(_DENOMINATOR, square)


def _polynomial(coefficients, x):
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, in the form of which the converters make one operator.

    That is 0 below -5.5 or so, where Keras' own is less, down to -13: what is added is nothing but its sign.
    """
    tail = ops.relu(x + 13.0) * ops.minimum(x, 0.0) * 1e-30
    return keras.layers.Activation(exact_gelu)(x) + tail


def _cosine(sine):
    return ops.sqrt((1.0 - sine) * (1.0 + sine))


# By the class of an operation of keras.ops.
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Arccos": lambda x: ops.arctan2(_cosine(x), x),
    "Arccosh": lambda x: ops.log(x + ops.sqrt((x - 1.0) * (x + 1.0))),
    "Arcsin": lambda x: ops.arctan2(x, _cosine(x)),
    "Arcsinh": lambda x: ops.sign(x) * ops.log(ops.abs(x) + ops.sqrt(x * x + 1.0)),
    "Arctan": lambda x: ops.arctan2(x, ops.ones_like(x)),
    "Arctanh": lambda x: 0.5 * (ops.log(1.0 + x) - ops.log(1.0 - x)),
    "Cosh": lambda x: 0.5 * (ops.exp(x) + ops.exp(-x)),
    "Erf": erf,
    "Sinh": lambda x: 0.5 * (ops.exp(x) - ops.exp(-x)),
    "Softsign": lambda x: x / (1.0 + ops.abs(x)),
    "Tan": lambda x: ops.sin(x) / ops.cos(x),
}


def rewritten(operation: keras.Operation) -> Callable[[Any], Any] | None:
    """Returns what computes the same as an operation of `keras.ops` in TFLite, `None` for all but those above."""
    name = type(operation).__name__
    if isinstance(operation, keras.Layer) or not type(operation).__module__.startswith("keras.src.ops"):
        return None
    if name == "Gelu":
        return None if operation.approximate else gelu
    if name == "Argmax":  # Keras' own looks at the bits of its input, for numbers that are almost 0
        last = operation.axis == -1 and not operation.keepdims
        return (lambda x: ops.squeeze(ops.top_k(x, 1)[1], -1)) if last else None
    return _FUNCTIONS.get(name)
