"""rematerialized: a part of a network whose intermediate results are computed again in the backward pass."""

from collections.abc import Callable

import keras

from keras_binaryvit.typing import Tensor


def rematerialized(layer: keras.Layer, function: Callable, inputs: Tensor) -> Tensor:
    """Returns `function(inputs)`, for the gradients of which nothing but the inputs is kept.

    `keras.RematScope` does that for layers without state only: on TensorFlow and JAX it fails where a variable is
    assigned, on PyTorch the second computation moves running statistics a second time. Here the function takes and
    returns the state, and the layer's variables are assigned once.

    Args:
        layer: The built layer to which all variables belong that `function` uses.
        function: Calls sublayers of `layer`; returns one tensor.
        inputs: A tensor.
    """
    trained, state = layer.trainable_variables, layer.non_trainable_variables
    # Read now: in the backward pass the variables hold the next step's values, the seeds of dropout among them.
    before = [(variable, keras.ops.copy(variable.value)) for variable in state]

    def pure(inputs, *values):
        with keras.StatelessScope([*before, *zip(trained, values, strict=True)]) as scope:
            outputs = function(inputs)
        return outputs, [scope.get_current_value(variable) for variable in state]

    outputs, after = keras.remat(pure)(inputs, *(keras.ops.convert_to_tensor(variable) for variable in trained))
    for variable, value in zip(state, after, strict=True):
        variable.assign(value)
    return outputs
