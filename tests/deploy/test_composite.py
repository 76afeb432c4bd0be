"""writing: layers write themselves as custom operators, and only inside it."""

import keras
import numpy as np
import pytest
from deploy_checks import BINARY, functional
from layer_checks import numpy

import keras_binaryvit as kb
from keras_binaryvit.deploy import composite, lce_layers

flexbuffers = pytest.importorskip("flatbuffers.flexbuffers")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow writes the file")


class Operator:
    """A custom operator of a file: its name, options, output shape and the bytes of its second input."""

    def __init__(self, model, graph, operator):
        self.name = (model.operatorCodes[operator.opcodeIndex].customCode or b"").decode()
        options = flexbuffers.GetRoot(bytearray(operator.customOptions)).AsMap if self.name else {}
        self.options = {key.AsKey: options[key.AsKey].AsInt for key in (options.Keys if self.name else [])}
        self.output_shape = tuple(graph.tensors[operator.outputs[0]].shape)
        tensors = [graph.tensors[index] for index in operator.inputs[1:2]]
        self.kernel = [bytes(data) for tensor in tensors if (data := model.buffers[tensor.buffer].data) is not None]


def written(frozen, lce):
    """Returns the custom operators of the file that TensorFlow's converter writes, and the layers that wrote some."""
    import tensorflow as tf
    from tensorflow.lite.python import schema_py_generated as schema

    model = keras.Model(frozen.inputs, frozen.outputs)
    signature = [tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype) for tensor in frozen.inputs]
    with composite.writing(lce) as layers:
        function = tf.function(lambda *x: model(list(x)), input_signature=signature, autograph=False)
        function = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    converter.allow_custom_ops = True
    file = schema.ModelT.InitFromPackedBuf(converter.convert(), 0)
    operators = [Operator(file, file.subgraphs[0], operator) for operator in file.subgraphs[0].operators]
    return [operator for operator in operators if operator.name], layers


def network(x):
    x = kb.layers.QuantConv2D(40, 3, strides=2, padding="same", pad_values=1.0, **BINARY)(x)
    return kb.layers.QuantDense(8, **BINARY)(x)


def test_lces_layers_write_themselves():
    frozen = kb.deploy.freeze(functional((7, 6, 48), network))
    operators, layers = written(frozen, lce=True)
    assert [op.name for op in operators] == ["LceQuantize", "LceBconv2d"] * 2
    assert [op.options["layer"] for op in operators] == [0, 1, 2, 3]
    assert [type(layer) for layer in layers] == [lce_layers.Sign, lce_layers.Convolution] * 2

    _, first, _, _ = operators
    geometry = {"padding": 0, "pad_values": 1, "stride_height": 2, "stride_width": 2, "channels_in": 48}
    assert {key: first.options[key] for key in geometry} == geometry
    assert first.output_shape == (1, 4, 3, 40)
    words = np.frombuffer(first.kernel[0], "<u4").reshape(40, 3, 3, 2)
    bits = (words[..., None] >> np.arange(32, dtype="u4") & 1).reshape(40, 3, 3, 64)
    expected = np.moveaxis(numpy(layers[1].kernel) < 0, -1, 0)
    np.testing.assert_array_equal(bits[..., :48], expected)
    np.testing.assert_array_equal(bits[..., 48:], 0)


def test_only_the_runtimes_layers_write_themselves():
    model = functional((4, 4, 32), lambda x: network(kb.layers.BinaryFeedForward(2)(x)))
    operators, layers = written(kb.deploy.freeze(model, "fused"), lce=False)
    assert [layer.operator for layer in layers] == ["BinaryVitFeedForward"]
    assert [op.name for op in operators] == ["BinaryVitFeedForward"]


def test_outside_of_writing():
    with composite.writing(lce=True):
        with composite.writing(lce=False):
            assert composite.writes() and not composite.writes(lce=True)
        assert composite.writes(lce=True)
    assert not composite.writes()
    with pytest.raises(RuntimeError, match="inside"):
        composite.operator(lce_layers.Sign(), "LceQuantize", (1,), "int32", np.zeros(1))
