"""lower: networks of any design. By hand what is special, and at random what is combined."""

import keras
import numpy as np
import pytest
from deploy_checks import BINARY, assert_same, functional, images, kinds, randomize
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from keras import layers, ops
from layer_checks import numpy

import keras_binaryvit as kb
from keras_binaryvit.deploy.freeze import binary_layers

JAX = keras.backend.backend() == "jax"  # compiles every operation on its first call

# --- By hand: ways to build a model ---


def norm_and_dense(x):
    return layers.Dense(3)(layers.BatchNormalization()(x))


def test_inputs_and_outputs_keep_their_structure():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    x = layers.Add()([a, b])
    for inputs in ([a, b], (b, a), {"b": b, "a": a}):
        for outputs in ([x, norm_and_dense(b)], {"y": norm_and_dense(x), "x": (a, [x])}, (x,), x):
            model = randomize(keras.Model(inputs, outputs))
            assert_same(kb.deploy.freeze(model), model, images(model))


def test_models_with_one_input_or_output_in_a_list():
    inputs = keras.Input((4,))
    for model in (keras.Model([inputs], norm_and_dense(inputs)), keras.Model(inputs, [norm_and_dense(inputs)])):
        assert_same(kb.deploy.freeze(randomize(model)), model, images(model))


def test_outputs_that_repeat_or_are_inputs():
    model = functional(
        (4,), lambda x: (lambda y: [x, y, y, layers.Dropout(0.5)(y), layers.Identity()(x)])(norm_and_dense(x))
    )
    assert_same(kb.deploy.freeze(model), model, images(model))


def test_an_input_that_nothing_reads():
    a, b = keras.Input((4,)), keras.Input((5,))
    model = randomize(keras.Model([a, b], norm_and_dense(a)))
    assert_same(kb.deploy.freeze(model), model, images(model))


def test_sequential_models():
    steps = [
        layers.Dense(8, "relu"),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        kb.layers.QuantDense(3, **BINARY),
    ]
    model = keras.Sequential([keras.Input((4,)), *steps])
    assert_same(kb.deploy.freeze(randomize(model)), model, images(model))
    deferred = keras.Sequential([layers.Dense(8), layers.BatchNormalization(), layers.Dense(3)])
    deferred.build((None, 4))
    assert_same(kb.deploy.freeze(randomize(deferred)), deferred, images(deferred))


def test_nested_models_called_several_times():
    """Also with names that occur in both of them."""

    def block(name):
        inputs = keras.Input((8,), name="x")
        x = layers.Dense(8, name="dense")(layers.BatchNormalization(name="norm")(inputs))
        x = layers.Add(name="sum")([kb.layers.QuantDense(8, name="quant", **BINARY)(x), inputs])
        return keras.Model(inputs, x + inputs, name=name)

    first, second = block("first"), block("second")
    tail = keras.Sequential(
        [keras.Input((8,)), layers.Dense(8, "relu", name="dense"), layers.Reshape((2, 4))], name="t"
    )

    def network(x):
        x = second(first(second(x)))
        return [tail(x), tail(first(x)), keras.Model(first.inputs, first.outputs, name="third")(x)]

    model = functional((8,), network)
    assert_same(kb.deploy.freeze(model), model, images(model, 16), exceptions=1)


def test_nested_models_with_several_inputs_and_outputs():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    inner = keras.Model({"a": a, "b": b}, {"sum": layers.Add()([a, norm_and_dense(b) @ np.ones((3, 4))]), "b": b})

    def network(x):
        outputs = inner({"b": layers.BatchNormalization()(x), "a": x})
        return outputs["sum"] - 2 * outputs["b"]

    model = functional((4,), network)
    assert_same(kb.deploy.freeze(model), model, images(model))


def test_layers_called_several_times():
    shared = [
        layers.BatchNormalization(),
        layers.Dense(8, "tanh"),
        kb.layers.QuantDense(8, **BINARY),
        kb.layers.BinaryProjection(8),
        kb.layers.RPReLU(),
        layers.LayerNormalization(),
        layers.MultiHeadAttention(2, 4),
    ]

    def network(x):
        for _ in range(2):
            for layer in shared:
                x = layer(x, x) if isinstance(layer, layers.MultiHeadAttention) else layer(x)
        return x

    model = functional((5, 8), network)
    frozen = kb.deploy.freeze(model)
    assert_same(frozen, model, images(model, 16), share=1e-4, exceptions=1)
    assert kinds(frozen)["MultiHeadAttention"] == 1


def test_arguments_by_name():
    model = functional(
        (5, 8),
        lambda x: [
            layers.Dropout(0.5)(inputs=x),
            layers.Dense(3)(inputs=x),
            layers.BatchNormalization()(inputs=x, training=False),
            layers.BatchNormalization()(x, training=False),
            kb.layers.QuantDense(4, **BINARY)(inputs=x),
            layers.MultiHeadAttention(2, 4)(query=x, value=layers.BatchNormalization()(x)),
        ],
    )
    assert_same(kb.deploy.freeze(model), model, images(model, 16), exceptions=1)


def test_operations():
    """Of keras.ops, and Python's: with constants on either side, several results, and affines before and after."""
    constant = np.arange(8, dtype="float32")

    def network(x):
        x = layers.BatchNormalization()(x)
        left, right = ops.split(x, 2, axis=-1)
        y = ops.concatenate([left * 2 - 1, 3 - right], axis=-1) / (1 + constant)
        y = kb.layers.Shift()(ops.relu(y) + x * y)
        return [y, x[:, 1:, ::2], ops.transpose(y, (0, 3, 1, 2)), ops.mean(x, axis=(1, 2)), kb.layers.RPReLU()(y - x)]

    model = functional((4, 4, 8), network)
    assert_same(kb.deploy.freeze(model), model, images(model))


@pytest.mark.parametrize("shared_axes", [None, [1], [2], [3], [1, 2], [1, 3], [1, 2, 3]])
@pytest.mark.parametrize("shape", [(4, 4, 16), (3, 3, 3), (16, 1, 1)])
def test_prelu_of_keras(shape, shared_axes):
    """Slopes for each channel, or for positions, whose number may be that of the channels."""
    model = functional(shape, layers.PReLU(shared_axes=shared_axes))
    frozen = kb.deploy.freeze(model)
    assert_same(frozen, model, images(model))
    assert list(kinds(frozen)) == ["PReLU"]


def test_normalization_adapted_to_data():
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(3, 5, (50, 4)))
    inputs = keras.Input((4,))
    for first in (layer, keras.Sequential([keras.Input((4,)), layer]), layers.Normalization(mean=2.0, variance=9.0)):
        model = keras.Model(inputs, layers.Rescaling(1 / 3, 1)(first(inputs)))
        assert_same(kb.deploy.freeze(model), model, images(model))


def test_other_layers_of_keras():
    def network(x):
        sequence = layers.Reshape((16, 8))(x)
        return [
            layers.LSTM(3)(sequence),
            layers.Bidirectional(layers.GRU(2))(sequence),
            layers.TimeDistributed(layers.Dense(3))(sequence),
            layers.Embedding(9, 3)(ops.cast(ops.clip(ops.abs(x), 0, 8), "int32")),
            layers.MultiHeadAttention(2, 4)(sequence, sequence, return_attention_scores=True),
            layers.GroupNormalization(4)(x),
            layers.UnitNormalization()(x),
            layers.DepthwiseConv2D(3)(x),
            layers.SeparableConv2D(3, 3)(x),
            layers.Conv2DTranspose(3, 3)(x),
            layers.Conv1D(3, 3)(sequence),
            layers.Activation("softmax")(x),
            layers.Dense(3, activation=layers.PReLU())(x),
            layers.Permute((3, 1, 2))(x),
        ]

    model = functional((4, 4, 8), network)
    assert_same(kb.deploy.freeze(model), model, images(model))


def test_augmentation_is_for_training():
    model = functional(
        (4, 4, 8),
        lambda x: layers.Dense(3)(layers.RandomFlip()(layers.RandomContrast(0.5)(layers.GaussianNoise(0.5)(x)))),
    )
    frozen = kb.deploy.freeze(model)
    x = images(model, 64)
    assert_same(frozen, model, x)
    np.testing.assert_array_equal(numpy(frozen(x)), numpy(frozen(x, training=False)))


def test_sides_that_are_unknown():
    def network(x):
        x = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
        x = kb.layers.QuantConv2D(8, 3, strides=2, padding="same", pad_values=1.0, **BINARY)(x)
        return layers.GlobalAveragePooling2D()(kb.layers.RPReLU()(x))

    model = functional((None, None, 3), network)
    for side in (5, 8):
        x = np.random.default_rng(0).normal(size=(16, side, side + 1, 3)).astype("float32")
        assert_same(kb.deploy.freeze(model), model, x, exceptions=1)
    model = functional((None, 8), lambda x: kb.layers.QuantDense(3, activation="relu", **BINARY)(x))
    assert_same(kb.deploy.freeze(model), model, images(model))


def test_sequences_of_unknown_length():
    def network(padding, pad_values):
        options = {"padding": padding, "pad_values": pad_values, "name": "here", **BINARY}
        return functional((None, 8), lambda x: layers.BatchNormalization()(kb.layers.QuantConv1D(4, 3, **options)(x)))

    for padding, pad_values in (("causal", 1.0), ("causal", -1.0), ("same", 0.0), ("same", 1.0)):
        model = network(padding, pad_values)
        assert_same(kb.deploy.freeze(model), model, images(model), exceptions=1)
    with pytest.raises(kb.deploy.ConversionError, match="'here' .* unknown length: it pads with 0.*pad_values=1 or -1"):
        kb.deploy.freeze(network("causal", 0.0))
    with pytest.raises(kb.deploy.ConversionError, match="'here' .* unknown sides: it pads with -1.*pad_values=1"):
        kb.deploy.freeze(network("same", -1.0))


@pytest.mark.parametrize("quantizers", [{"kernel_quantizer": "scaled_sign"}, {"input_quantizer": "ste_tern"}, {}])
@pytest.mark.parametrize("padding, pad_values", [("valid", 0), ("same", 1), ("causal", 0), ("causal", 0.5)])
def test_sequences_in_float32(padding, pad_values, quantizers):
    layer = kb.layers.QuantConv1D(4, 3, padding=padding, pad_values=pad_values, activation="relu", **quantizers)
    model = functional((7, 8), lambda x: layer(layers.BatchNormalization()(x)))
    frozen = kb.deploy.freeze(model)
    assert kinds(frozen)["Convolution"] == 1 and kinds(frozen)["Reshape"] == 2
    assert_same(frozen, model, images(model), exceptions=quantizers.get("input_quantizer") is not None)


class Residual(layers.Layer):
    """Somebody's own layer around binary ones, as `freeze` asks for it."""

    def __init__(self, kernel_quantizer="scaled_sign", **kwargs):
        super().__init__(**kwargs)
        self.kernel_quantizer = kb.quantizers.get(kernel_quantizer)

    def build(self, input_shape):
        options = {"input_quantizer": "ste_sign", "kernel_quantizer": self.kernel_quantizer}
        self.convolution = kb.layers.QuantConv2D(input_shape[-1], 3, padding="same", pad_values=1.0, **options)
        self.dense = kb.layers.QuantDense(input_shape[-1], **options)
        self.norm = layers.BatchNormalization()
        for layer in (self.convolution, self.dense, self.norm):
            layer.build(input_shape)

    def call(self, inputs):
        return inputs + self.norm(self.dense(self.convolution(inputs)))

    def get_config(self):
        return {**super().get_config(), "kernel_quantizer": kb.quantizers.serialize(self.kernel_quantizer)}


def test_a_layer_of_ones_own():
    model = functional((4, 4, 8), lambda x: Residual()(Residual("ste_sign")(layers.BatchNormalization()(x))))
    frozen = kb.deploy.freeze(model)
    assert_same(frozen, model, images(model, 16), exceptions=1)
    assert len(binary_layers(frozen)) == 4
    again = kb.deploy.freeze(frozen)
    np.testing.assert_array_equal(numpy(again(images(model))), numpy(frozen(images(model))))


class Doubled(kb.layers.QuantDense):
    """A subclass may do anything: its parent's rule isn't for it."""

    def call(self, inputs):
        return 2 * super().call(inputs)


def test_subclasses_of_our_layers():
    model = functional((8,), Doubled(4, **BINARY))
    assert_same(kb.deploy.freeze(model), model, images(model))


QUANTIZERS = [None, "ste_sign", "approx_sign", "swish_sign", "ste_heaviside", "ste_tern", "dorefa_quantizer"]
KERNEL_QUANTIZERS = [None, "ste_sign", "scaled_sign", "centered_scaled_sign", "magnitude_aware_sign", "ste_tern"]
KERNEL_QUANTIZERS += ["dorefa_quantizer"]


@pytest.mark.parametrize("kernel_quantizer", KERNEL_QUANTIZERS)
def test_quantizers(kernel_quantizer):
    """All that may come before a product."""

    def network(x):
        options = {"kernel_quantizer": kernel_quantizer}
        outputs = [kb.layers.QuantConv2D(4, 3, padding="same", input_quantizer=q, **options)(x) for q in QUANTIZERS]
        return [*outputs, *[kb.layers.QuantDense(4, "relu", input_quantizer=q, **options)(x) for q in QUANTIZERS]]

    model = functional((5, 5, 8), lambda x: network(layers.BatchNormalization()(x)))
    assert_same(kb.deploy.freeze(model), model, images(model, 16), exceptions=1)


def test_values_on_the_threshold():
    """All sums are exact here, and many values are exactly on a threshold: a tie is +1 on both sides of freezing."""

    def network(x):
        for _ in range(2):
            x = kb.layers.Shift()(kb.layers.QuantConv2D(8, 2, use_bias=False, **BINARY)(x))
            x = kb.layers.RPReLU()(kb.layers.BatchNorm(epsilon=2.0**-10)(x))
            x = layers.Add()([kb.layers.QuantDense(8, **BINARY)(x), layers.AveragePooling2D(1)(x)])
        return [x, kb.layers.QuantDense(8, **BINARY)(kb.layers.ResidualAffine()(x))]

    model = functional((6, 6, 8), network)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "variance" in variable.path:
            variable.assign(np.full(variable.shape, 4 - 2.0**-10))
        elif "kernel" not in variable.path:
            variable.assign(rng.integers(-2, 3, variable.shape))
    x = rng.integers(-2, 3, (16, 6, 6, 8)).astype("float32")
    frozen = kb.deploy.freeze(model)
    for actual, expected in zip(frozen(x), model(x, training=False), strict=True):
        np.testing.assert_array_equal(numpy(actual), numpy(expected))


# --- At random ---


class Network:
    """A network that grows by one layer after the other; hypothesis chooses them, and what each reads."""

    def __init__(self, draw):
        self.draw = draw
        self.log = []
        self.made = []  # layers that a later map of the same channels can go through again

    def one_of(self, *choices):
        return self.draw(st.sampled_from(choices))

    def quantized(self):
        return {
            "input_quantizer": self.one_of("ste_sign", "approx_sign", None),
            "kernel_quantizer": self.one_of("ste_sign", "scaled_sign", "centered_scaled_sign"),
            "use_bias": self.one_of(True, False),
            "activation": self.one_of(None, "relu"),
        }

    def layer(self, x):
        """Returns a layer or function that fits the map `x`."""
        _, height, width, channels = x.shape
        even = height % 2 == width % 2 == 0
        big = min(height, width) >= 3
        size = self.one_of(1, 3, 3) if big else 1
        widths = (channels, 2 * channels if channels < 32 else channels, channels // 2 if channels > 4 else channels)
        maps = {
            "kernel_size": (size, size),
            "padding": self.one_of("same", "valid"),
            "strides": self.one_of(1, 1, 2),
            "groups": self.one_of(1, 1, 4),
        }
        our = kb.layers
        makers = {
            "conv": lambda: layers.Conv2D(8, **maps, activation=self.one_of(None, "relu")),
            "quant conv": lambda: our.QuantConv2D(8, **maps, pad_values=self.one_of(0.0, 1.0), **self.quantized()),
            "dense": lambda: layers.Dense(8, use_bias=self.one_of(True, False)),
            "quant dense": lambda: our.QuantDense(self.one_of(4, 8), **self.quantized()),
            "norm": lambda: layers.BatchNormalization(scale=self.one_of(True, False), center=self.one_of(True, False)),
            "our norm": our.BatchNorm,
            "shift": our.Shift,
            "affine": our.ResidualAffine,
            "rprelu": our.RPReLU,
            "prelu": lambda: layers.PReLU(shared_axes=self.one_of([1, 2], [3], None)),
            "relu": layers.ReLU,
            "dropout": lambda: layers.Dropout(0.5),
            "projection": lambda: our.BinaryProjection(self.one_of(*widths)),
            "feed forward": lambda: our.BinaryFeedForward(2),
            "branches": our.MultiBranchAveragePooling,
            "attention": lambda: our.BinarySelfAttention(self.one_of(1, 2), 2 if even else 1),
            "block": lambda: our.BinaryTransformerBlock(
                2,
                self.one_of(1, 2) if even else 1,
                2,
                use_pooling_branches=self.one_of(True, False),
                use_affine=self.one_of(True, False),
            ),
            "layer norm": layers.LayerNormalization,
            "add constant": lambda: lambda x: x + 0.5,
            "times constant": lambda: lambda x: x * np.linspace(-1, 2, x.shape[-1], dtype="float32"),
            "split": lambda: lambda x: ops.concatenate(ops.split(x, 2, axis=-1)[::-1], axis=-1),
            "pad": lambda: layers.ZeroPadding2D(1),
            "nested": lambda: self.nested(x),
        }
        if even:
            makers["merging"] = lambda: our.PatchMerging(channels, binary=self.one_of(True, False))
            makers["pool"] = lambda: self.one_of(layers.AveragePooling2D, layers.MaxPooling2D)(2)
        name = self.draw(st.sampled_from(sorted(makers)))
        self.log.append(name)
        return makers[name]()

    def nested(self, x):
        inputs = keras.Input(x.shape[1:])
        inner = self.layer(inputs)
        if self.one_of(True, False):
            return keras.Sequential([inputs, inner]) if isinstance(inner, layers.Layer) else inner
        y = inner(inputs)
        return keras.Model(inputs, self.layer(y)(y))

    def model(self, depth):
        inputs = [keras.Input((6, 6, 8)) for _ in range(self.one_of(1, 1, 2))]
        tensors = list(inputs)
        for _ in range(depth):
            x = tensors[-1] if self.one_of(True, True, False) else self.draw(st.sampled_from(tensors))
            again = [layer for layer, shape in self.made if shape == x.shape]
            if again and self.one_of(True, False, False):
                self.log.append("again")
                layer = self.draw(st.sampled_from(again))
            else:
                layer = self.layer(x)
                self.made.append((layer, x.shape))
            y = layer(x)
            alike = [other for other in tensors if other.shape == y.shape]
            join = self.one_of("none", "none", "add", "+", "concatenate") if alike else "none"
            if join != "none" and y.shape[-1] <= 16:
                self.log.append(join)
                others = [self.draw(st.sampled_from(alike)) for _ in range(self.one_of(1, 2))]
                if join == "add":
                    y = layers.Add()([y, *others])
                elif join == "+":
                    y = y + others[0]
                else:
                    y = layers.Concatenate()([y, others[0]])
            tensors.append(y)
        x = tensors[-1]
        heads = {
            "mean": lambda: layers.Dense(5)(layers.GlobalAveragePooling2D()(x)),
            "flat": lambda: kb.layers.QuantDense(5, **BINARY)(layers.Flatten()(x)),
            "tokens": lambda: layers.MultiHeadAttention(2, 4)(*[layers.Reshape((-1, x.shape[-1]))(x)] * 2),
            "map": lambda: x,
        }
        name = self.draw(st.sampled_from(sorted(heads)))
        self.log.append(name)
        outputs = [heads[name]()]
        if self.one_of(True, False, False):
            outputs.append(self.draw(st.sampled_from(tensors)))
        return keras.Model(inputs, outputs)


@settings(
    max_examples=15 if JAX else 60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_random_networks(data):
    keras.utils.clear_session(free_memory=False)
    network = Network(data.draw)
    model = network.model(data.draw(st.integers(1, 7)))
    note(", ".join(network.log))
    randomize(model, seed=data.draw(st.integers(0, 99)))
    # A bit that flips for rounding changes one image of 16; a mistake most of them.
    assert_same(kb.deploy.freeze(model), model, images(model, 16), share=1e-4, exceptions=2)
