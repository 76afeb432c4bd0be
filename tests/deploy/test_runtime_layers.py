"""The fused layers: against docs/operators.md in NumPy, bit for bit, and against the models that they come from."""

import fused_reference
import keras
import numpy as np
import parity
import pytest
from deploy_checks import assert_same, functional, images, kinds, pyramid
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import layers
from layer_checks import normal, numpy

import keras_binaryvit as kb
from keras_binaryvit.deploy import runtime_layers

JAX = keras.backend.backend() == "jax"  # compiles every operation for every shape
not_on_jax = pytest.mark.skipif(JAX, reason="compiling takes long, and says nothing new")
examples = settings(
    max_examples=2 if JAX else 12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
CHANNELS = st.sampled_from([1, 5, 31, 32, 33, 48, 64])


def randomized(layer, *shapes):
    """Builds the layer, gives it random constants, and returns random inputs; many are on a threshold exactly."""
    layer.build(shapes[0] if len(shapes) == 1 else list(shapes))
    rng = np.random.default_rng(0)
    values = {
        row: rng.normal(size=getattr(layer, name).shape[1]) for name in layer.tables for row in layer.tables[name]
    }
    for row in ("scale", *(row for row in values if "threshold" in row)):
        values[row] = np.round(2 * values[row]) / 2
    for name in ("kernel", "kernels", "kernel_1", "kernel_2"):
        if hasattr(layer, name):
            values[name] = rng.choice([-1.0, 1.0], getattr(layer, name).shape)
    if isinstance(layer, runtime_layers.SelfAttention):
        values["probability_threshold"] = rng.uniform(0.01, 0.2, 1)
    for name, value in layer.constants(**values).items():
        getattr(layer, name).assign(value)
    return [np.round(2 * normal(*shape, seed=1 + index)) / 2 for index, shape in enumerate(shapes)]


def check(layer, inputs, reference, **options):
    expected = reference(inputs[0], *layer.operands(), *inputs[1:], **options)
    actual = numpy(layer(inputs if len(inputs) > 1 else inputs[0]))
    assert actual.dtype == expected.dtype == "float32"
    np.testing.assert_array_equal(actual, expected)


# --- What they compute ---


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), CHANNELS, st.integers(1, 5), st.integers(0, 1))
@examples
def test_feed_forward(leading, channels, expansion, residual):
    layer = runtime_layers.FeedForward(expansion, residual=residual)
    inputs = randomized(layer, *[(*leading, channels)] * (1 + residual))
    check(layer, inputs, fused_reference.feed_forward)


@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 8, 20, 32]),
    st.integers(1, 3),
    st.integers(0, 1),
)
@examples
def test_attention(batch, height, width, heads, head_dim, reduction, residual):
    layer = runtime_layers.SelfAttention(heads, reduction, residual=residual)
    inputs = randomized(layer, (batch, height * reduction, width * reduction, heads * head_dim))
    check(layer, inputs, fused_reference.attention, **layer.attributes)


def test_a_tie_with_the_probability_threshold_is_no_attention():
    layer = runtime_layers.SelfAttention(2)
    (x,) = randomized(layer, (1, 2, 2, 16))
    x = np.broadcast_to(x[:, :1, :1], x.shape)  # four equal keys: each has a quarter
    outputs = []
    for threshold in (0.25, np.nextafter(np.float32(0.25), np.float32(0))):
        layer.probability_threshold.assign([threshold])
        check(layer, [x], fused_reference.attention, **layer.attributes)
        outputs.append(numpy(layer(x)))
    assert np.any(outputs[0] != outputs[1])


@given(st.integers(1, 7), st.integers(1, 7), CHANNELS, st.integers(0, 3), st.integers(0, 3), st.integers(0, 1))
@examples
def test_pooling(height, width, channels, vertical, horizontal, residual):
    layer = runtime_layers.PoolingBranches(vertical, horizontal, residual=residual)
    inputs = randomized(layer, (2, height, width, channels))
    check(layer, inputs, fused_reference.pooling, **layer.attributes)


@given(st.integers(1, 3), st.integers(1, 3), CHANNELS, st.integers(1, 3))
@examples
def test_patch_merging(height, width, channels, copies):
    layer = runtime_layers.PatchMerging(channels * copies)
    inputs = randomized(layer, (2, 2 * height, 2 * width, channels))
    check(layer, inputs, fused_reference.patch_merging)


def test_bits_of_a_kernel():
    kernel = np.ones((2, 33, 3), "float32")
    kernel[0, 0, 0] = kernel[0, 31, 0] = kernel[1, 32, 2] = kernel[1, 1, 2] = -1
    low_and_high = 1 - 2**31
    np.testing.assert_array_equal(runtime_layers.pack(kernel), [[low_and_high, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 1]])
    assert runtime_layers.pack(kernel).dtype == "int32"


# --- The models that they come from ---


@pytest.mark.parametrize("name", parity.RECORDINGS[2:3] if JAX else parity.RECORDINGS)
def test_equals_the_authors_recordings(name):
    recording = parity.Recording(name)
    frozen = kb.deploy.freeze(recording.model(), "fused")
    assert parity.relative_error(frozen(recording.images), recording.arrays["eval/logits"]) < 1e-5
    expected = {"pyramid_mini": 5 * 3 + 3, "flat_row1_cls": 2 * 2, "flat_row4_branch_ls": 2 * 3, "deit_fp": 0}
    assert len(runtime_layers.fused_layers(frozen)) == expected[name]


@not_on_jax
def test_nothing_is_left_between_them():
    """Norms, shifts and residual scales are in the operators' tables, and around them folded as ever."""
    model = pyramid()
    frozen = kb.deploy.freeze(model, "fused")
    assert_same(frozen, model, images(model, 16), exceptions=2)
    blocks = {"SelfAttention": 2, "PoolingBranches": 2, "FeedForward": 2, "PatchMerging": 1, "AddConstant": 2}
    assert kinds(frozen) == {**blocks, "Convolution": 1, "GlobalAveragePooling": 1, "Dense": 1}


@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["ste_sign", "approx_sign", "swish_sign"]),
    st.sampled_from(["scaled_sign", "centered_scaled_sign", "magnitude_aware_sign", "ste_sign"]),
)
@examples
def test_blocks(
    height, width, channels, heads, reduction, expansion, branches, affine, input_quantizer, kernel_quantizer
):
    block = kb.layers.BinaryTransformerBlock(
        heads,
        reduction,
        expansion,
        use_pooling_branches=branches,
        use_affine=affine,
        input_quantizer=input_quantizer,
        kernel_quantizer=kernel_quantizer,
    )
    model = functional((height * reduction, width * reduction, 8 * heads * channels), block)
    frozen = kb.deploy.freeze(model, "fused")
    assert_same(frozen, model, images(model), exceptions=1)
    assert set(kinds(frozen)) == {"SelfAttention", "FeedForward"} | ({"PoolingBranches"} if branches else set())


def users_network(x):
    """One operator of each kind by itself, with affines before, between and after them, and a shortcut around one."""
    x = layers.BatchNormalization()(x)
    x = kb.layers.BinaryFeedForward(2)(kb.layers.Shift()(x))
    y = kb.layers.ResidualAffine()(kb.layers.BinarySelfAttention(2, 2)(kb.layers.ResidualAffine()(x)))
    x = layers.Add()([x, y])
    x = kb.layers.MultiBranchAveragePooling(((7, 1), (1, 3), (1, 1)))(layers.BatchNormalization()(x))
    x = kb.layers.PatchMerging(48)(layers.BatchNormalization()(x))
    return layers.Dense(5)(layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x)))


def test_a_users_network():
    model = functional((4, 8, 24), users_network)
    frozen = kb.deploy.freeze(model, "fused")
    assert_same(frozen, model, images(model, 16), exceptions=2)
    singles = {"FeedForward": 1, "SelfAttention": 1, "PoolingBranches": 1, "PatchMerging": 1}
    assert kinds(frozen) == {**singles, "Add": 1, "AddConstant": 1, "GlobalAveragePooling": 1, "Dense": 1}


@not_on_jax
def test_an_affine_on_what_is_added():
    """Its shift becomes part of the operator; its scale can't, for the sum needs the scaled map itself."""
    block = kb.layers.BinaryTransformerBlock(2, 1, 2)
    shifted = functional((4, 4, 16), lambda x: block(kb.layers.Shift()(x)))
    frozen = kb.deploy.freeze(shifted, "fused")
    assert_same(frozen, shifted, images(shifted, 16), exceptions=1)
    assert kinds(frozen) == {"SelfAttention": 1, "PoolingBranches": 1, "FeedForward": 1}
    block = kb.layers.BinaryTransformerBlock(2, 1, 2)
    scaled = functional((4, 4, 16), lambda x: block(layers.BatchNormalization()(x)))
    frozen = kb.deploy.freeze(scaled, "fused")
    assert_same(frozen, scaled, images(scaled, 16), exceptions=1)
    assert kinds(frozen) == {"Affine": 1, "SelfAttention": 1, "PoolingBranches": 1, "FeedForward": 1}


@not_on_jax
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_feed_forward_of_any_rank(rank):
    model = functional((2,) * (rank - 2) + (24,), kb.layers.BinaryFeedForward(2))
    frozen = kb.deploy.freeze(model, "fused")
    assert_same(frozen, model, images(model), exceptions=1)
    assert kinds(frozen).get("FeedForward", 0) == (rank < 5)


@not_on_jax
@pytest.mark.parametrize(
    "layer, left",
    [
        (lambda: kb.layers.BinaryTransformerBlock(2, 1, 2, input_quantizer="ste_heaviside"), {"PoolingBranches"}),
        (lambda: kb.layers.BinaryFeedForward(2, input_quantizer=None), set()),
        (lambda: kb.layers.BinaryFeedForward(2, kernel_quantizer=None), set()),
        (lambda: kb.layers.BinarySelfAttention(2, input_quantizer="ste_heaviside"), set()),
        (lambda: kb.layers.MultiBranchAveragePooling(((3, 3), (1, 5))), set()),
        (lambda: kb.layers.PatchMerging(32, binary=False), set()),
        (lambda: kb.layers.PatchMerging(32, input_quantizer="ste_heaviside"), set()),
    ],
)
def test_layers_that_have_no_operator_are_lowered_as_ever(layer, left):
    model = functional((4, 4, 16), layer())
    frozen = kb.deploy.freeze(model, "fused")
    assert_same(frozen, model, images(model), exceptions=1)
    assert {type(found).__name__ for found in runtime_layers.fused_layers(frozen)} == left


def negative(a, rng):
    return -np.abs(a)


def some_zeros(a, rng):
    return np.where(rng.uniform(size=a.shape) < 0.3, 0, a)


@not_on_jax
@pytest.mark.parametrize("change", [negative, some_zeros, lambda a, rng: 0 * a])
@pytest.mark.parametrize("name", ["gamma", "scale", "slope"])
def test_unusual_weights(name, change):
    model = pyramid()
    rng = np.random.default_rng(5)
    for variable in model.variables:
        if variable.path.endswith(f"/{name}"):
            variable.assign(change(numpy(variable), rng))
    assert_same(kb.deploy.freeze(model, "fused"), model, images(model, 16), exceptions=2)


def test_real_probabilities_are_an_error():
    model = functional((4, 4, 16), kb.layers.BinarySelfAttention(2, binary_probabilities=False))
    with pytest.raises(ValueError, match="real attention probabilities"):
        kb.deploy.freeze(model, "fused")


# --- They are ordinary layers ---


def test_saved_and_frozen_again(tmp_path):
    model = functional((4, 4, 16), lambda x: kb.layers.PatchMerging(32)(kb.layers.BinaryTransformerBlock(2, 2, 2)(x)))
    frozen = kb.deploy.freeze(model, "fused")
    x = images(model)
    frozen.save(tmp_path / "frozen.keras")
    loaded = keras.saving.load_model(tmp_path / "frozen.keras")
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(frozen(x)))
    again = kb.deploy.freeze(frozen, "fused")
    np.testing.assert_array_equal(numpy(again(x)), numpy(frozen(x)))
    assert kinds(again) == kinds(frozen)
    assert not frozen.trainable_variables


def test_an_affine_before_a_frozen_model():
    frozen = kb.deploy.freeze(functional((4, 4, 16), kb.layers.BinaryFeedForward(2)), "fused")
    model = functional((4, 4, 16), lambda x: frozen(layers.BatchNormalization()(x)))
    assert_same(kb.deploy.freeze(model, "fused"), model, images(model), exceptions=1)


def test_wrong_ops():
    model = pyramid()
    with pytest.raises(ValueError, match="'lce' or 'fused'.*'lite'"):
        kb.deploy.freeze(model, "lite")
    with pytest.raises(ValueError, match="frozen with ops='fused'"):
        kb.deploy.freeze(kb.deploy.freeze(model, "fused"))
