"""int8 layers after training: what is quantized, what stays, and how far outputs move."""

import keras
import numpy as np
import pytest
from deploy_checks import functional
from keras import layers

import keras_binaryvit as kb
from keras_binaryvit.deploy import flatbuffer as flatbuffers
from keras_binaryvit.deploy.int8 import with_int8_layers

pytest.importorskip("binaryvit_runtime")
if keras.backend.backend() != "tensorflow":
    pytest.skip("these conversions run in this process, which needs the TensorFlow backend", allow_module_level=True)
SIGNS = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign", "padding": "same", "pad_values": 1.0}


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def files(data):
    keras.utils.set_random_seed(0)

    def call(x):
        x = layers.Conv2D(32, 3, padding="same")(x)
        x = layers.Add()([x, layers.BatchNormalization()(kb.layers.QuantConv2D(32, 3, **SIGNS)(x))])
        x = layers.DepthwiseConv2D(3, strides=2)(x)
        return layers.Dense(10, name="head")(layers.Flatten()(x))

    content = kb.deploy.convert(functional((8, 8, 3), call))
    return content, with_int8_layers(content, data)


def operators(content, name):
    return [operator for operator in flatbuffers.read(content).operators if operator.name == name]


def test_weighted_operators_have_int8_kernels(files):
    for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        assert [operator.inputs[1].dtype for operator in operators(files[1], name)] == ["int8"]


def test_the_rest_stays(files):
    def described(content):
        return [
            (o.options, [t and (t.shape, t.dtype, bytes(t.data)) for t in o.inputs], o.outputs[0].name)
            for o in operators(content, "LceBconv2d")
        ]

    assert len(described(files[0])) == 1
    assert described(files[0]) == described(files[1])
    before, after = (flatbuffers.read(content) for content in files)
    for tensors in ("inputs", "outputs"):
        ends = [[(t.name, t.shape, t.dtype) for t in getattr(model, tensors)] for model in (before, after)]
        assert ends[0] == ends[1]


def test_kernels_are_rounded_to_127_steps_of_a_channel(files):
    float_kernel, int8_kernel = (operators(content, "CONV_2D")[0].inputs[1] for content in files)
    values = np.frombuffer(float_kernel.data, "<f4").reshape(float_kernel.shape)
    steps = np.abs(values).max((1, 2, 3), keepdims=True) / 127
    expected = np.rint(values / steps)
    np.testing.assert_array_less(np.abs(np.frombuffer(int8_kernel.data, "i1").reshape(values.shape) - expected), 1.5)


def test_without_signs_outputs_are_near_float32(data):
    keras.utils.set_random_seed(0)
    model = functional((8, 8, 3), lambda x: layers.Dense(10)(layers.Flatten()(layers.Conv2D(16, 3)(x))))
    content = kb.deploy.convert(model)
    near, far = (kb.deploy.run(with_int8_layers(content, images), data) for images in (data, data[:8] / 20))
    expected = model.predict(data, verbose=0)
    assert np.abs(near - expected).max() < 0.05 * np.abs(expected).max()
    assert np.abs(far - expected).max() > 0.2 * np.abs(expected).max()  # ranges come from the data


def test_what_a_loop_computes_stays(data):
    def call(x):
        return layers.Dense(3)(layers.LSTM(8)(layers.Reshape((3, 12))(layers.Conv2D(4, 3, strides=2)(x))))

    model = functional((8, 8, 3), call)
    content = kb.deploy.convert(model, float_layers="int8", representative_data=data)
    kernels = [operator.inputs[1].dtype for operator in operators(content, "FULLY_CONNECTED")]
    assert sorted(kernels) == ["float32", "float32", "int8"]
    assert np.abs(kb.deploy.run(content, data) - model.predict(data, verbose=0)).max() < 0.05


def test_convert_does_it(files, data):
    def call(x):
        return layers.Dense(10)(layers.Flatten()(layers.Conv2D(16, 3)(x)))

    model = functional((8, 8, 3), call)
    file = kb.deploy.convert(model, float_layers="int8", representative_data=data)
    assert file == with_int8_layers(kb.deploy.convert(model), data)
    for arguments in ({"float_layers": "int8"}, {"representative_data": data}, {"float_layers": "int4"}):
        with pytest.raises(ValueError, match="'int8' with representative_data. Received: float_layers="):
            kb.deploy.convert(model, **arguments)


def test_batches_with_targets_are_as_one_array(files, data):
    batches = [(data[:40], np.zeros(40)), (data[40:], np.zeros(24))]
    assert with_int8_layers(files[0], batches) == files[1]


def test_errors(files, data):
    with pytest.raises(ValueError, match="representative_data is empty"):
        with_int8_layers(files[0], [])
    with pytest.raises(TypeError, match="takes float32"):
        with_int8_layers(files[0], data.astype("uint8"))
    with pytest.raises(ValueError, match="shape"):
        with_int8_layers(files[0], data[:, :4])


def test_names_of_fused_operators_stay(data):
    model = kb.BinaryViT.from_preset("binaryvit_tiny_32", num_classes=10)
    content = kb.deploy.convert(model, "fused")
    named = [
        [(o.name, o.outputs[0].name) for o in flatbuffers.read(file).operators if o.name.startswith("BinaryVit")]
        for file in (content, with_int8_layers(content, np.tile(data[:4], (1, 4, 4, 1))))
    ]
    assert len(named[0]) > 4
    assert named[0] == named[1]
