"""freeze as a whole: the frozen model computes what the trained one does, and is an ordinary Keras model."""

import subprocess
import sys

import keras
import numpy as np
import parity
import pytest
from deploy_checks import BINARY, assert_same, functional, images, pyramid, randomize
from gradients import compiled
from keras import layers
from layer_checks import assert_close, flat_vit, numpy

import keras_binaryvit as kb
from keras_binaryvit.deploy.freeze import binary_layers


@pytest.fixture(scope="module")
def model():
    return pyramid()


@pytest.fixture(scope="module")
def frozen(model):
    return kb.deploy.freeze(model)


# --- The values ---


@pytest.mark.parametrize("name", parity.RECORDINGS)
def test_equals_the_authors_recordings(name):
    """No value of them is near a threshold: a bit that flips is a mistake."""
    recording = parity.Recording(name)
    frozen = kb.deploy.freeze(recording.model())
    assert parity.relative_error(compiled(frozen)(recording.images), recording.arrays["eval/logits"]) < 1e-5


def test_equals_the_authors_recording_image_by_image():
    """One image goes through attention on a way of its own."""
    recording = parity.Recording("pyramid_mini")
    frozen = compiled(kb.deploy.freeze(recording.model()))
    logits = np.concatenate([numpy(frozen(image[None])) for image in recording.images])
    assert parity.relative_error(logits, recording.arrays["eval/logits"]) < 1e-5


def train(model, steps=5):
    x, y = images(model, 4 * steps), np.arange(4 * steps) % 5
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, run_eagerly=True)  # compiling would take longer
    model.fit(x, y, batch_size=4, verbose=0)
    return model


@pytest.mark.parametrize(
    "create",
    [
        pyramid,
        lambda: flat_vit(
            (8, 8, 3), 5, 4, 16, 1, 2, 2, use_class_token=True, use_pooling_branches=False, use_affine=False
        ),
        lambda: kb.DeiT((8, 8, 3), 5, 4, 16, 1, 2, 2),
    ],
    ids=["pyramid", "class token", "deit"],
)
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="training step by step takes long, and says nothing new")
def test_equals_the_trained_model(create):
    model = train(create())
    # Nobody placed these values away from thresholds.
    assert_same(kb.deploy.freeze(model), model, images(model, 16, seed=2), exceptions=2)


def variables(model, *names):
    chosen = [v for v in model.variables if v.path.rpartition("/")[-1] in names]
    assert chosen
    return chosen


def set_all(names, function):
    def change(model):
        rng = np.random.default_rng(5)
        for variable in variables(model, *names):
            variable.assign(function(numpy(variable), rng))

    return change


def mostly(value, fraction=0.3):
    return lambda a, rng: np.where(rng.uniform(size=a.shape) < fraction, value, a)


@pytest.mark.parametrize(
    "change",
    [
        set_all(["gamma"], lambda a, rng: -np.abs(a)),
        set_all(["gamma"], mostly(0.0)),
        set_all(["gamma"], lambda a, rng: 0 * a),
        set_all(["gamma"], mostly(1e-6)),
        set_all(["gamma"], mostly(1e-30)),
        set_all(["slope"], lambda a, rng: -1 - np.abs(a)),
        set_all(["slope"], lambda a, rng: 0 * a),
        set_all(["scale"], lambda a, rng: -np.abs(a)),
        set_all(["scale"], lambda a, rng: 0 * a),
        set_all(["clip"], lambda a, rng: -1.0),
        set_all(["clip"], lambda a, rng: 0.0),
        set_all(["clip"], lambda a, rng: 2.5),
        set_all(["moving_variance"], mostly(0.0)),
        set_all(["moving_variance"], lambda a, rng: 1e4 * a),
        set_all(["beta", "moving_mean"], lambda a, rng: 30 * a),
    ],
    ids=[
        "negative gammas",
        "some gammas 0",
        "all gammas 0",
        "some gammas tiny",
        "some gammas vanishing",
        "negative slopes",
        "slopes 0",
        "negative scales",
        "scales 0",
        "clip negative",
        "clip 0",
        "clip above all probabilities",
        "some variances 0",
        "large variances",
        "large shifts",
    ],
)
def test_unusual_weights(change):
    model = pyramid()
    change(model)
    # After a division by the root of a variance of 0 rounding is 300 times larger.
    assert_same(kb.deploy.freeze(model), model, images(model, 16), share=1e-4, exceptions=2)


def test_clip_acts_as_its_floor(model):
    negative, floor = pyramid(), pyramid()
    for model, value in ((negative, -1.0), (floor, 1e-5)):
        for variable in variables(model, "clip"):
            variable.assign(value)
    x = images(model)
    np.testing.assert_array_equal(kb.deploy.freeze(negative)(x), kb.deploy.freeze(floor)(x))


def test_kernels_are_what_the_paper_says(model, frozen):
    kernel = numpy(model.get_layer("block_0").attention.query.dense.kernel)
    layer = frozen.get_layer("block_0-attention-query-convolution")
    signs = np.where(kernel - kernel.mean(0) >= 0, 1, -1)
    np.testing.assert_array_equal(numpy(layer.kernel)[0, 0], signs)


@pytest.mark.parametrize("binary_patch_merging", [True, False])
def test_binary_kernels_are_constants_of_one_bit(binary_patch_merging):
    model = pyramid(binary_patch_merging=binary_patch_merging, num_heads=(4, 8))
    frozen = kb.deploy.freeze(model)
    assert_same(frozen, model, images(model, 16), exceptions=2)
    binary = binary_layers(frozen)
    assert len(binary) == 7 + 6 + binary_patch_merging
    for layer in binary:
        assert set(np.unique(numpy(layer.kernel))) == {-1.0, 1.0}
    assert not frozen.trainable_variables


# --- The model ---


def test_saves_and_loads_in_a_new_process(frozen, tmp_path):
    x = images(frozen)
    expected = numpy(frozen(x))
    frozen.save(tmp_path / "frozen.keras")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import keras, keras_binaryvit, numpy as np; frozen = keras.saving.load_model('frozen.keras'); "
        "np.save('y.npy', keras.ops.convert_to_numpy(frozen(np.load('x.npy'))))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


def every_kind(x):
    """A network of layers of all kinds that frozen models are made of."""
    x = kb.layers.PatchEmbedding(16, 2, use_norm=False, use_class_token=True)(x)
    x = layers.Reshape((17, 16))(x)
    x = x + layers.MultiHeadAttention(2, 8)(layers.LayerNormalization()(x), x)
    x = layers.ZeroPadding2D(((0, 3), (0, 0)))(layers.Reshape((17, 1, 16))(x))
    x = layers.Reshape((10, 2, 16))(layers.BatchNormalization()(x))
    x = kb.layers.BinaryTransformerBlock(2, 2, 2)(x)
    x = kb.layers.QuantConv2D(8, 3, padding="same", pad_values=1.0, activation="relu", **BINARY)(x)
    x = kb.layers.QuantConv2D(8, (3, 1), input_quantizer="ste_tern", kernel_quantizer="dorefa_quantizer")(x)
    return kb.layers.QuantDense(5, **BINARY)(kb.layers.RPReLU()(layers.Flatten()(layers.MaxPooling2D((2, 1))(x))))


def test_models_of_all_kinds_save_and_load(tmp_path):
    model = functional((8, 8, 3), every_kind)
    frozen = kb.deploy.freeze(model)
    x = images(model)
    assert_same(frozen, model, x, exceptions=1)
    frozen.save(tmp_path / "frozen.keras")
    loaded = keras.saving.load_model(tmp_path / "frozen.keras")
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(frozen(x)))
    assert [v.path for v in loaded.variables] == [v.path for v in frozen.variables]
    again = kb.deploy.freeze(loaded)
    np.testing.assert_array_equal(numpy(again(x)), numpy(frozen(x)))


def test_frozen_again_is_the_same(frozen):
    again = kb.deploy.freeze(frozen)
    x = images(frozen)
    np.testing.assert_array_equal(numpy(again(x)), numpy(frozen(x)))
    assert len(again.layers) == len(frozen.layers)


def test_training_model_is_unchanged(tmp_path):
    model = functional((8, 8, 3), every_kind)
    x = images(model)
    weights, outputs, config = model.get_weights(), numpy(model(x)), model.to_json()
    trainable = [v.path for v in model.trainable_variables]
    frozen = kb.deploy.freeze(model)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(numpy(model(x)), outputs)
    assert model.to_json() == config
    assert [v.path for v in model.trainable_variables] == trainable

    # The two share nothing: neither changes with the other.
    expected = numpy(frozen(x))
    for variable in model.variables:
        variable.assign(np.zeros(variable.shape))
    np.testing.assert_array_equal(numpy(frozen(x)), expected)
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").to_json() == config


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_freezes_to_float32(policy):
    """What was trained in half precision computes in float32 with the same weights."""
    before = keras.config.dtype_policy()
    expected = kb.deploy.freeze(functional((8, 8, 3), every_kind))
    keras.config.set_dtype_policy(policy)
    try:
        model = functional((8, 8, 3), every_kind)
        assert keras.backend.standardize_dtype(model(images(model)).dtype) != "float32"
        frozen = kb.deploy.freeze(model)
    finally:
        keras.config.set_dtype_policy(before)
    for layer in frozen._flatten_layers(include_self=False):
        assert layer.compute_dtype == "float32" or isinstance(layer, layers.InputLayer), layer.name
    assert {keras.backend.standardize_dtype(v.dtype) for v in frozen.variables if "seed" not in v.path} == {"float32"}
    x = images(model)
    np.testing.assert_array_equal(numpy(frozen(x)), numpy(expected(x)))


def test_models_of_layers_in_mixed_precision():
    """The models take a policy as an argument."""
    frozen = kb.deploy.freeze(pyramid(dtype="mixed_bfloat16"))
    expected = kb.deploy.freeze(pyramid())
    x = images(frozen)
    np.testing.assert_array_equal(numpy(frozen(x)), numpy(expected(x)))


def test_names_say_where_layers_come_from(model, frozen):
    names = [layer.name for layer in frozen.layers]
    assert len(set(names)) == len(names)
    known = {layer.name for layer in model.layers}
    assert {name.partition("-")[0] for name in names} <= known


# --- What can't be frozen ---


def test_unbuilt_models():
    with pytest.raises(ValueError, match="'nothing yet' has no weights yet"):
        kb.deploy.freeze(keras.Sequential([kb.layers.QuantDense(3)], name="nothing yet"))


def test_real_attention_probabilities():
    model = keras.Sequential([keras.Input((4, 4, 8)), kb.layers.BinarySelfAttention(2, binary_probabilities=False)])
    with pytest.raises(ValueError, match="binary_self_attention.* has real attention probabilities"):
        kb.deploy.freeze(model)


def turned(x):
    """Values decide what it does."""
    return x if bool(keras.ops.max(x) > 0) else -x


class Native(layers.Layer):
    """Can't be opened, and has a layer with quantizers."""

    def build(self, input_shape):
        self.dense = kb.layers.QuantDense(4, **BINARY, name="hidden")
        self.dense.build(input_shape)

    def call(self, inputs):
        return turned(self.dense(inputs))

    def compute_output_shape(self, input_shape):
        return input_shape


class Unnamed(layers.Layer):
    """Can't be opened, and gives its configuration without an argument that it needs."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def get_config(self):
        return super().get_config()

    def call(self, inputs):
        return turned(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.mark.parametrize(
    "layer, message",
    [
        (Native(name="box"), "box.*keras.ops"),
        (Unnamed(3, name="unnamed"), "unnamed' can't.*Unnamed can't be made again.*units"),
        (layers.Lambda(turned, output_shape=(4,), name="turned"), "turned' can't.*Lambda.call"),
    ],
    ids=["quantized inside", "no config", "lambda"],
)
@pytest.mark.parametrize("nested", [False, True])
def test_layers_that_cannot_be_frozen_are_named(layer, message, nested):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(inputs))
    if nested:
        inputs = keras.Input((4,))
        model = keras.Model(inputs, model(inputs))
    randomize(model)
    with pytest.raises(kb.deploy.ConversionError, match=message):
        kb.deploy.freeze(model)


def test_channels_first_is_named():
    inputs = keras.Input((3, 8, 8))
    for layer in (
        layers.Conv2D(4, 3, data_format="channels_first", name="first"),
        kb.layers.QuantConv2D(4, 3, data_format="channels_first", name="first", **BINARY),
    ):
        with pytest.raises(ValueError, match="first.*channels-last"):
            kb.deploy.freeze(keras.Model(inputs, layer(inputs)))


def test_kernels_of_zeros():
    """A unit whose kernel is all zero has signs still: scaled_sign keeps a tiny scale."""
    layer = kb.layers.QuantDense(3, input_quantizer="ste_sign", kernel_quantizer="scaled_sign")
    model = functional((4,), layer)
    model.layers[-1].kernel.assign(np.zeros((4, 3)))
    assert_close(numpy(kb.deploy.freeze(model)(images(model))), numpy(model(images(model))))


def test_an_output_for_the_whole_batch_is_refused():
    model = functional((4, 4, 32), lambda x: keras.ops.mean(keras.layers.Conv2D(3, 1)(x)))
    with pytest.raises(kb.deploy.ConversionError, match="'mean.*' gives one number for a whole batch"):
        kb.deploy.freeze(model)
