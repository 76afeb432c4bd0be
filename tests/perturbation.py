"""`pytest --perturb`: TensorFlow and JAX compute as on other processors, whose elementary functions round differently.

IEEE 754 asks for correct rounding of sums, products, divisions and square roots only. `exp`, `log`, `tanh`, `pow`,
`rsqrt` and what is made of them differ by a few units in the last place (ulp) between processors and libraries. Here
their float32 and float64 results are moved by -3 to +3 ulp, in a fixed pattern that depends on a value's bits and on
whether it lies in a whole vector of eight or in the remainder, as it does on real processors.
"""

import functools
import inspect
import os
import sys

import numpy as np

ENVIRONMENT = "KERAS_BINARYVIT_PERTURB"
_LARGEST, _LANES = 3, 8
_active = False


def install_if_asked():
    """Installs the perturbation in this process if the one that started it has it."""
    if os.environ.get(ENVIRONMENT):
        install()


def install():
    """Perturbs both TensorFlow and JAX in this process, and in those that it starts and that ask for it."""
    global _active
    if _active:
        return
    _active = True
    os.environ[ENVIRONMENT] = "1"
    _install_tensorflow()
    _install_jax()


def unperturbed(function):
    """Returns `function` such that what TensorFlow traces in it is not perturbed: for files that other programs run."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        global _active
        before, _active = _active, False
        try:
            return function(*args, **kwargs)
        finally:
            _active = before

    return wrapped


def _steps(bits, in_remainder):
    """Returns by how many ulp to move values with these bits; `in_remainder`, as integers, is 1 outside of vectors."""
    # Neighbors move alike, so that an error of this processor isn't made up for.
    return ((bits + 8) // 16 + in_remainder) % (2 * _LARGEST + 1) - _LARGEST


# --- TensorFlow ---

_TENSORFLOW = {
    "gen_math_ops": (
        *("acosh", "asinh", "atanh", "cosh", "digamma", "erf", "erfc", "exp", "expm1", "lgamma", "log", "log1p"),
        *("_pow", "reciprocal", "rsqrt", "sigmoid", "sinh", "tanh"),
    ),
    "gen_nn_ops": (
        *("elu", "log_softmax", "selu", "softmax", "softplus"),
        *("softmax_cross_entropy_with_logits", "sparse_softmax_cross_entropy_with_logits"),
    ),
}


def _install_tensorflow():
    import tensorflow as tf
    from tensorflow.python.ops import gen_math_ops, gen_nn_ops

    originals = {}
    for module in (gen_math_ops, gen_nn_ops):
        for name in _TENSORFLOW[module.__name__.rpartition(".")[-1]]:
            originals[getattr(module, name)] = _perturbed_by_tensorflow
    originals[gen_math_ops.real_div] = _division_by_tensorflow
    wrapped = {function: wrap(tf, function) for function, wrap in originals.items()}
    # The public modules, and many others, hold the same functions.
    for module in [m for name, m in sys.modules.items() if name.split(".")[0] in ("tensorflow", "keras")]:
        for name, value in list(vars(module).items()):
            if callable(value) and getattr(value, "__hash__", None) and value in wrapped:
                setattr(module, name, wrapped[value])


def _perturbed_by_tensorflow(tf, function):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        result = function(*args, **kwargs)
        if not _active:
            return result
        if isinstance(result, tuple):  # a loss, and its gradient
            return result._replace(loss=_moved_by_tensorflow(tf, result.loss))
        return _moved_by_tensorflow(tf, result)

    return wrapped


def _division_by_tensorflow(tf, function):
    """Divides, but as a compiled function does: it multiplies with rsqrt or the reciprocal where it can."""

    def source(x):
        operation = getattr(x, "op", None)
        while operation is not None and operation.type in ("Identity", "ReadVariableOp") and operation.inputs:
            operation = operation.inputs[0].op
        return operation

    @functools.wraps(function)
    def wrapped(x, y, name=None):
        result = function(x, y, name=name)
        if not _active or tf.executing_eagerly():
            return result
        divisor, dividend = source(result.op.inputs[1]), source(result.op.inputs[0])
        one = dividend.type == "Const" and (tf.get_static_value(dividend.outputs[0]) == 1).all()
        return _moved_by_tensorflow(tf, result) if one or divisor.type == "Sqrt" else result

    return wrapped


def _moved_by_tensorflow(tf, x):
    integers = {tf.float32: tf.int32, tf.float64: tf.int64}
    if not isinstance(x, tf.Tensor) or x.dtype not in integers:
        return x
    integer = integers[x.dtype]
    bits = tf.bitcast(x, integer)
    count = tf.size(x)
    positions = tf.reshape(tf.range(count), tf.shape(x))
    in_remainder = tf.cast(positions >= count - count % _LANES, integer)
    moved = tf.bitcast(bits + _steps(bits, in_remainder), x.dtype)
    # Both operations are exact, and the gradient is that of x.
    moved = tf.where(_is_normal(tf.abs(x), x.dtype.as_numpy_dtype), x + tf.stop_gradient(moved - x), x)
    moved.set_shape(x.shape)
    return moved


# --- JAX ---

# The rule of `logistic` computes it from `exp`.
_JAX = ("acosh", "asinh", "atanh", "cosh", "digamma", "erf", "erfc", "exp", "exp2", "expm1", "lgamma", "log", "log1p")
_JAX += ("pow", "rsqrt", "sinh", "tanh")


def _install_jax():
    import jax
    from jax.interpreters import mlir

    for name in _JAX:
        primitive = getattr(jax.lax, f"{name}_p")
        mlir.register_lowering(primitive, _perturbed_by_jax(_rule_of(primitive)))
    # Newer versions lower a primitive once for all its calls, unless told otherwise; then none shows its divisor.
    each = {"cacheable": False} if "cacheable" in inspect.signature(mlir.register_lowering).parameters else {}
    mlir.register_lowering(jax.lax.div_p, _perturbed_by_jax(_rule_of(jax.lax.div_p), _divides_by_root), **each)
    jax.clear_caches()


def _rule_of(primitive):
    from jax._src.interpreters import mlir

    entry = mlir._lowerings[primitive]
    return getattr(entry, "rule", entry)  # newer versions store the rule in a record


def _divides_by_root(dividend, divisor):
    """Whether XLA multiplies with rsqrt instead."""
    operation = divisor.owner
    while getattr(operation, "name", "") in ("stablehlo.broadcast_in_dim", "stablehlo.reshape"):
        operation = operation.operands[0].owner
    return getattr(operation, "name", "") == "stablehlo.sqrt"


def _perturbed_by_jax(rule, condition=lambda *operands: True):
    from jax.interpreters import mlir

    move = mlir.lower_fun(_moved_by_jax, multiple_results=False)

    def perturbed(context, *operands, **parameters):
        results = rule(context, *operands, **parameters)
        if not condition(*operands):
            return results
        return move(context.replace(avals_in=context.avals_out), *results)

    return perturbed


def _moved_by_jax(x):
    import jax.numpy as jnp
    from jax import lax

    integers = {"float32": jnp.int32, "float64": jnp.int64}
    if x.dtype.name not in integers:
        return x
    integer = integers[x.dtype.name]
    x = lax.optimization_barrier(x)  # compiled with what follows, it would round differently by itself
    bits = lax.bitcast_convert_type(x, integer)
    positions = lax.iota(jnp.int32, x.size).reshape(x.shape)
    in_remainder = (positions >= x.size - x.size % _LANES).astype(integer)
    moved = lax.bitcast_convert_type(bits + _steps(bits, in_remainder), x.dtype)
    return jnp.where(_is_normal(abs(x), x.dtype), moved, x)


def _is_normal(magnitude, dtype):
    """Whether moving values of this magnitude leaves them finite and other than 0."""
    limits = np.finfo(dtype)
    return (magnitude >= 2 * limits.tiny) & (magnitude <= limits.max / 2)
