"""freeze opens models and layers of the user's own: what they call is frozen like the layers of a functional model."""

import keras
import numpy as np
import pytest
from deploy_checks import BINARY, assert_same, functional, images, kinds, randomize
from keras import layers, ops
from layer_checks import numpy

import keras_binaryvit as kb
from keras_binaryvit.deploy.freeze import binary_layers


class Mixer(layers.Layer):
    """Layers, weights of its own, Python arithmetic; no get_config for its arguments."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense = kb.layers.QuantDense(units, **BINARY)
        self.norm = layers.BatchNormalization()
        self.dropout = layers.Dropout(0.5)

    def build(self, input_shape):
        self.factor = self.add_weight(name="factor", shape=(self.dense.units,))
        self.calls = self.add_weight(name="calls", shape=(), initializer="zeros", trainable=False)
        self.dense.build(input_shape)
        self.norm.build((*input_shape[:-1], self.dense.units))

    def call(self, inputs, training=None):
        self.calls.assign_add(1.0)
        batch, *sides = ops.shape(inputs)[:-1]
        x = self.factor * self.norm(self.dense(inputs), training=training) + 0.5
        x = self.dropout(x, training=training)
        return ops.reshape(ops.reshape(x, (batch, -1)), (-1, *sides, self.dense.units))


class Classifier(keras.Model):
    """A model with a call of its own: a dictionary comes in, one comes out."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stem = layers.Conv2D(32, 1)
        self.mixer = Mixer(32)
        self.head = layers.Dense(3)

    def call(self, inputs, training=None):
        x = self.mixer(self.stem(inputs["image"]), training=training)
        for _ in range(2):  # the same layer twice
            x = x + self.mixer(x, training=training)
        return {"logits": self.head(ops.mean(x, axis=(1, 2))) * inputs["weight"], "map": x}


def test_layers():
    model = functional((4, 5, 32), lambda x: Mixer(8)(Mixer(32)(x)))
    x = images(model, 16)
    weights = model.get_weights()
    frozen = kb.deploy.freeze(model)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)  # nothing counts a call
    assert_same(frozen, model, x, exceptions=1)
    assert len(binary_layers(frozen)) == 2 and "Mixer" not in kinds(frozen)
    assert all(len(layer._inbound_nodes) == 0 for mixer in model.layers[1:] for layer in mixer._flatten_layers(False))


def test_models(tmp_path):
    model = Classifier(name="mine")
    x = {"image": np.zeros((2, 4, 4, 3), "float32"), "weight": np.zeros((2, 1), "float32")}
    model(x)
    randomize(model)
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(8, *value.shape[1:])).astype("float32") for name, value in x.items()}
    frozen = kb.deploy.freeze(model)
    assert_same(frozen, model, x, exceptions=1)
    assert len(binary_layers(frozen)) == 3
    frozen.save(tmp_path / "frozen.keras")
    loaded = keras.saving.load_model(tmp_path / "frozen.keras")  # needs no class of the user's
    np.testing.assert_array_equal(numpy(loaded(x)["logits"]), numpy(frozen(x)["logits"]))


def test_models_within_models():
    inner = Classifier(name="inner")
    shapes = {"image": (4, 4, 3), "weight": (1,)}
    inputs = {name: keras.Input(shape, name=name) for name, shape in shapes.items()}
    model = randomize(keras.Model(inputs, [inner(inputs)["logits"]]))
    assert_same(kb.deploy.freeze(model), model, images(model), exceptions=1)


def test_a_network_on_pixels():
    """It normalizes integers itself, also within another model."""
    preprocessor = kb.layers.ImagePreprocessor((8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    network = kb.BinaryViT((8, 8, 3), 3, 2, (8,), (1,), (2,), (1,), (2,), preprocessor=preprocessor)
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    model = randomize(keras.Model(inputs, network(inputs)))
    x = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype("uint8")
    assert_same(kb.deploy.freeze(model), model, x, exceptions=1)


def test_a_graph_that_a_subclass_changes():
    class Changed(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return 2 * super().call(inputs, training=training, mask=mask)

    inputs = keras.Input((8,))
    model = randomize(Changed(inputs, kb.layers.QuantDense(3, **BINARY)(inputs)))
    assert_same(kb.deploy.freeze(model), model, images(model))


def test_models_that_are_not_ready():
    class Open(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    model = Open(name="open")
    model.build((None, 4))  # which builds nothing in it
    with pytest.raises(kb.deploy.ConversionError, match="'open' can't.*never been built"):
        kb.deploy.freeze(model)


def test_time_distributed():
    model = functional((3, 6, 6, 32), layers.TimeDistributed(kb.layers.QuantConv2D(8, 3, **BINARY)))
    frozen = kb.deploy.freeze(model)
    assert_same(frozen, model, images(model))
    assert len(binary_layers(frozen)) == 3


def test_functions():
    """Lambdas, and functions as activations and as quantizers."""

    def own_sign(x):
        return ops.where(x >= 0, 1.0, -1.0)

    def network(x):
        x = layers.Lambda(lambda x: 2 * x - 1)(x)
        x = layers.Dense(32, activation=lambda x: x * ops.sigmoid(x))(x)
        return kb.layers.QuantDense(8, input_quantizer=own_sign, kernel_quantizer="ste_sign")(x)

    model = functional((4, 32), network)
    frozen = kb.deploy.freeze(model)
    assert_same(frozen, model, images(model), exceptions=1)
    assert len(binary_layers(frozen)) == 1


def test_constants_fold_like_layers():
    """Arithmetic with one value, or one for each channel, costs no operation."""
    factor = np.linspace(-1, 1, 8, dtype="float32") + 0.1

    def network(x):
        x = 3 - layers.Conv2D(8, 1)(x) * factor
        return layers.Dense(3)((x - 1) / factor + 2)

    frozen = kb.deploy.freeze(functional((4, 4, 8), network))
    assert kinds(frozen) == {"Convolution": 1, "Dense": 1}


def test_low_rank_updates_are_merged():
    def network(x):
        x = layers.EinsumDense("abc,cd->abd", (4, 6), bias_axes="d")(x)
        x = kb.layers.QuantDense(8, **BINARY)(x)
        return layers.Dense(3)(x)

    model = functional((4, 8), network)
    for layer in model.layers[1:]:
        layer.enable_lora(2)
    randomize(model)
    assert_same(kb.deploy.freeze(model), model, images(model))


def test_layers_that_keras_has_quantized_are_named():
    model = functional((8,), lambda x: layers.Dense(3, name="b")(layers.Dense(8, name="a")(x)))
    model.quantize("int8")
    with pytest.raises(kb.deploy.ConversionError, match="quantize: a, b"):
        kb.deploy.freeze(model)


def test_layers_that_keep_a_state_are_named():
    model = keras.Sequential([keras.Input(batch_shape=(1, 5, 4)), layers.LSTM(3, stateful=True, name="mine")])
    with pytest.raises(kb.deploy.ConversionError, match=r"from batch to batch, .*mine\. .*\(initial_state\)"):
        kb.deploy.freeze(model)


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "float64", "mixed_bfloat16"])
def test_policies(policy):
    """The frozen model computes in float32 with the same weights."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = functional((4, 4, 32), lambda x: layers.Dense(3)(Mixer(8)(kb.layers.BatchNorm()(x))))
        frozen = kb.deploy.freeze(model)
    finally:
        keras.config.set_dtype_policy(before)
    x = images(model)
    assert keras.backend.standardize_dtype(frozen(x).dtype) == "float32"
    expected, actual = numpy(ops.cast(model(x), "float32")), numpy(frozen(x))
    assert np.median(np.abs(actual - expected)) < 0.05 * np.abs(expected).max()
