"""Conversion of programs of every shape: inputs and outputs, batches, integers, and models without a graph."""

import keras
import numpy as np
import pytest
from deploy_checks import BINARY, CONVERTERS, images, pyramid, randomize
from keras import layers
from requirements import needs_interpreter, needs_runtime

import keras_binaryvit as kb
from keras_binaryvit.deploy import flatbuffer as flatbuffers

if keras.backend.backend() != "tensorflow":
    pytest.skip("these conversions run in this process, which needs the TensorFlow backend", allow_module_level=True)
pytestmark = needs_interpreter


@pytest.fixture(scope="module")
def model():
    return pyramid()


def pair():
    """Returns two inputs, in the opposite of their alphabetical order, and what both give."""
    left, right = keras.Input((4, 4, 32), name="right"), keras.Input((4, 4, 32), name="left")
    conv = kb.layers.QuantConv2D(32, 3, **BINARY)
    return left, right, conv(left), conv(right)


STRUCTURES = {
    "list": lambda a, b, x, y: keras.Model([a, b], keras.layers.Subtract(name="difference")([x, y])),
    "nested": lambda a, b, x, y: keras.Model(
        [a, [b]], [keras.layers.ReLU(name="z")(x), {"k": layers.ReLU(name="a")(y)}]
    ),
    "dict": lambda a, b, x, y: keras.Model({"right": a, "left": b}, {"second": y, "first": x}),
    "input as output": lambda a, b, x, y: keras.Model([a, b], [x, layers.ReLU(name="r")(b)]),
    "unused input": lambda a, b, x, y: keras.Model([a, b], keras.layers.ReLU(name="r")(x)),
}
NAMES = {
    "list": (["right", "left"], ["difference"]),
    "nested": (["right", "left"], ["z", "a"]),
    "dict": (["left", "right"], ["first", "second"]),
    "input as output": (["right", "left"], ["quant_conv2d", "r"]),
    "unused input": (["right", "left"], ["r"]),
}


@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.parametrize("name", STRUCTURES)
def test_inputs_and_outputs_by_order_and_name(name, converter):
    keras.utils.clear_session()  # layers are counted from the first
    model = randomize(STRUCTURES[name](*pair()))
    flatbuffer = kb.deploy.convert(model, converter=converter)
    content = flatbuffers.read(flatbuffer)
    assert ([t.name for t in content.inputs], [t.name for t in content.outputs]) == NAMES[name]
    signature = flatbuffers.unpack(flatbuffer).signatureDefs[0]
    for side, names in zip((signature.inputs, signature.outputs), NAMES[name], strict=True):
        assert [entry.name.decode() for entry in side] == names
    kb.deploy.verify(model, flatbuffer, images(model))


@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.parametrize("ops", ["lce", "fused"])
def test_batches(model, ops, converter):
    flatbuffer = kb.deploy.convert(model, ops, batch_size=4, converter=converter)
    assert flatbuffers.read(flatbuffer).inputs[0].shape == (4, 16, 16, 3)
    kb.deploy.verify(model, flatbuffer, images(model, 8))
    fixed = keras.Input(batch_shape=(2, 4, 4, 32))
    fixed = randomize(keras.Model(fixed, kb.layers.QuantConv2D(32, 3, **BINARY)(fixed)))
    assert flatbuffers.read(kb.deploy.convert(fixed, ops, converter=converter)).inputs[0].shape == (2, 4, 4, 32)
    with pytest.raises(ValueError, match="batch_size must be positive, and 2 where the input .* says it"):
        kb.deploy.convert(fixed, batch_size=3)


RESIZED = {
    "flattened": lambda x: layers.Dense(3)(layers.Flatten()(x)),
    "sequence": lambda x: layers.Permute((2, 1))(layers.Reshape((36, 32))(x)),
    "binary, flattened": lambda x: kb.layers.QuantDense(5, **BINARY)(layers.Flatten()(x)),
    "larger": lambda x: layers.UpSampling2D(2)(x),
    "one-dimensional": lambda x: kb.layers.QuantConv1D(32, 3, **BINARY)(layers.Reshape((36, 32))(x)),
    "steps": lambda x: layers.TimeDistributed(kb.layers.QuantDense(8, **BINARY))(layers.Reshape((4, 9, 32))(x)),
}


@needs_runtime
@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.parametrize("name", RESIZED)
def test_resized_to_another_batch(name, converter):
    from ai_edge_litert.interpreter import Interpreter
    from binaryvit_runtime import load_delegate

    inputs = keras.Input((8, 8, 32))
    model = randomize(keras.Model(inputs, RESIZED[name](kb.layers.QuantConv2D(32, 3, **BINARY)(inputs))))
    flatbuffer, x = kb.deploy.convert(model, converter=converter), images(model, 3)
    interpreter = Interpreter(model_content=flatbuffer, experimental_delegates=[load_delegate()])
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], x)
    interpreter.invoke()
    expected = kb.deploy.run(flatbuffer, x)  # one by one
    np.testing.assert_allclose(interpreter.get_tensor(target["index"]), expected, atol=1e-5 * np.abs(expected).max())


@needs_runtime
def test_where_the_batch_moves_it_is_fixed():
    """Else a side of the map that is as long as the batch would change with it."""
    inputs = keras.Input((4, 4, 32))
    x = keras.ops.transpose(kb.layers.QuantConv2D(32, 1, **BINARY)(inputs), (1, 0, 2, 3))
    x = keras.ops.transpose(keras.ops.reshape(x, (4, -1, 128)), (1, 0, 2))
    flatbuffer = kb.deploy.convert(randomize(keras.Model(inputs, x)), batch_size=4)
    (reshape,) = [op for op in flatbuffers.read(flatbuffer).operators if op.name == "RESHAPE"]
    assert np.frombuffer(reshape.inputs[1].data, "<i4")[0] == 4


@pytest.mark.parametrize("converter", CONVERTERS)
def test_integer_images(converter):
    def network(x):
        x = keras.layers.Conv2D(32, 1)(keras.layers.Rescaling(1 / 127.5, -1)(x))
        return keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(kb.layers.QuantConv2D(32, 3, **BINARY)(x)))

    inputs = keras.Input((8, 8, 3), dtype="uint8")
    model = randomize(keras.Model(inputs, network(inputs)))
    flatbuffer = kb.deploy.convert(model, converter=converter)
    assert flatbuffers.read(flatbuffer).inputs[0].dtype == "uint8"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype("uint8")
    assert kb.deploy.verify(model, flatbuffer, pixels).agreement == 1
    with pytest.raises(TypeError, match="takes uint8. Received: float32"):
        kb.deploy.run(flatbuffer, pixels.astype("float32"))


def test_a_model_without_a_graph():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = keras.layers.Conv2D(32, 3), kb.layers.QuantConv2D(8, 3, **BINARY)

        def call(self, x):
            return keras.ops.mean(self.conv(self.stem(x)), (1, 2))

    model = Subclassed()
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    model(x)
    flatbuffer = kb.deploy.convert(randomize(model))
    assert kb.deploy.count_operators(flatbuffer)["LceBconv2d"] == 1
    kb.deploy.verify(model, flatbuffer, x)


def test_a_model_without_a_graph_and_with_a_dictionary():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = kb.layers.QuantConv2D(8, 3, **BINARY)

        def call(self, inputs):
            return {"sum": keras.ops.mean(self.conv(inputs["image"]), (1, 2)) + inputs["bias"]}

    model = Subclassed()
    rng = np.random.default_rng(0)
    x = {"image": rng.normal(size=(4, 8, 8, 32)).astype("float32"), "bias": rng.normal(size=(4, 8)).astype("float32")}
    model(x)
    kb.deploy.verify(model, kb.deploy.convert(randomize(model)), x)


def test_equal_layers_of_one_input():
    def network(x):
        equal = [kb.layers.QuantDense(32, **BINARY) for _ in range(2)]
        outputs = [layer(x) for layer in equal]
        equal[1].set_weights(equal[0].get_weights())
        return outputs

    inputs = keras.Input((4, 4, 32))
    model = keras.Model(inputs, network(inputs))
    kb.deploy.verify(model, kb.deploy.convert(model), images(model))
