"""Values and gradients as NumPy arrays, on whichever backend Keras runs."""

import keras
import numpy as np
from keras import ops


def compiled(function):
    """Compiles `function` as a whole on JAX, where one program for each of its operations takes much longer."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)


def value_and_gradient(function, *arrays, upstream=None):
    """Returns `(function(*arrays), gradients)`: one gradient for each array, zero where it plays no part.

    `upstream` is the gradient of the loss to the value, ones by default.
    """
    arrays = [np.asarray(array) for array in arrays]
    backend = keras.backend.backend()
    if backend == "tensorflow":
        value, gradients = _tensorflow(function, arrays, upstream)
    elif backend == "jax":
        value, gradients = _jax(function, arrays, upstream)
    else:
        value, gradients = _torch(function, arrays, upstream)
    return ops.convert_to_numpy(value), [ops.convert_to_numpy(gradient) for gradient in gradients]


def layer_gradients(layer, *inputs, upstream=None, **arguments):
    """Returns `(value, input_gradients, weight_gradients)` of a built layer called with `inputs` and `arguments`.

    `weight_gradients` is a dictionary from the path of each trainable variable. The layer's state stays as it is.
    """
    weights = list(layer.trainable_variables)
    state = [variable.value for variable in layer.non_trainable_variables]

    def function(*arrays):
        tensors = list(arrays[len(inputs) :])
        return layer.stateless_call(tensors, state, *arrays[: len(inputs)], **arguments)[0]

    arrays = [*inputs, *(ops.convert_to_numpy(weight.value) for weight in weights)]
    value, gradients = value_and_gradient(function, *arrays, upstream=upstream)
    names = [weight.path for weight in weights]
    return value, gradients[: len(inputs)], dict(zip(names, gradients[len(inputs) :], strict=True))


def _tensorflow(function, arrays, upstream):
    import tensorflow as tf

    tensors = [tf.convert_to_tensor(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
    upstream = None if upstream is None else tf.cast(upstream, value.dtype)
    return value, tape.gradient(value, tensors, upstream, unconnected_gradients="zero")


def _jax(function, arrays, upstream):
    import jax

    value, backward = jax.vjp(function, *(jax.numpy.asarray(array) for array in arrays))
    return value, backward(ops.cast(ops.ones_like(value) if upstream is None else upstream, value.dtype))


def _torch(function, arrays, upstream):
    import torch

    tensors = [ops.convert_to_tensor(array).clone().requires_grad_() for array in arrays]
    value = function(*tensors)
    upstream = ops.cast(ops.ones_like(value) if upstream is None else upstream, value.dtype)
    gradients = torch.autograd.grad(value, tensors, upstream, allow_unused=True)
    pairs = zip(gradients, tensors, strict=True)
    return value, [torch.zeros_like(tensor) if gradient is None else gradient for gradient, tensor in pairs]
