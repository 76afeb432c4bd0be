"""What Interpreter.predict takes: several inputs by name, and no array that the model's type can't hold."""

import numpy as np
import pytest
from binaryvit_runtime import Interpreter
from graphs import Operator, graph
from models import Tensor, pack, single_op

SHAPE = (1, 2, 40)


def two_quantizers():
    tensors = {name: Tensor(SHAPE, "float32") for name in ("left", "right")}
    tensors |= {f"{name}_bits": Tensor((1, 2, 2), "int32") for name in tensors}
    operators = [Operator("LceQuantize", [name], [f"{name}_bits"]) for name in ("left", "right")]
    return graph(tensors, operators, ["left", "right"], ["right_bits", "left_bits"])


def test_inputs_and_outputs_by_name():
    interpreter = Interpreter(two_quantizers())
    assert interpreter.input_names == ["left", "right"] and interpreter.output_names == ["right_bits", "left_bits"]
    left, right = np.random.default_rng(0).normal(size=(2, 3, *SHAPE[1:]))
    for inputs in {"right": right, "left": left}, [left, right], (left, right):
        outputs = dict(zip(interpreter.output_names, interpreter.predict(inputs), strict=True))
        np.testing.assert_array_equal(outputs["left_bits"], pack(left))
        np.testing.assert_array_equal(outputs["right_bits"], pack(right))


def test_other_inputs_are_refused():
    interpreter = Interpreter(two_quantizers())
    x = np.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"takes the inputs \['left', 'right'\]. Received: \['left'\]"):
        interpreter.predict({"left": x})
    with pytest.raises(ValueError, match="takes 2 inputs. Received: 1"):
        interpreter.predict(x)
    with pytest.raises(ValueError, match=r"must be as long. Received: \[1, 2\]"):
        interpreter.predict([x, np.concatenate([x, x])])


def test_values_are_never_cast_to_what_they_are_not():
    floats = Interpreter(single_op("LceQuantize", [Tensor(SHAPE, "float32")], Tensor((1, 2, 2), "int32")))
    int8 = Interpreter(
        single_op("LceQuantize", [Tensor(SHAPE, "int8", quantization=(0.5, 3))], Tensor((1, 2, 2), "int32"))
    )
    pixels = np.random.default_rng(0).integers(0, 128, SHAPE)
    np.testing.assert_array_equal(int8.predict(pixels), int8.predict(pixels.astype(np.int8)))
    with pytest.raises(TypeError, match="takes int8. Received: float32"):
        int8.predict(pixels.astype(np.float32))
    with pytest.raises(TypeError, match="takes float32. Received: uint8"):
        floats.predict(pixels.astype(np.uint8))
    pixels[0, 1, 7] = 128
    with pytest.raises(ValueError, match="takes int8. Received: uint8, with values beyond it"):
        int8.predict(pixels.astype(np.uint8))
