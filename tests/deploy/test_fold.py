"""fold: affines in their cheapest places, and in none twice. What stays is counted; what is computed is compared."""

import keras
import numpy as np
import pytest
from deploy_checks import BINARY, assert_same, functional, images, kinds, pyramid, randomize
from keras import layers
from layer_checks import float64, numpy

import keras_binaryvit as kb
from keras_binaryvit.layers import BatchNorm, MultiBranchAveragePooling, ResidualAffine, RPReLU, Shift

# Of the library and of Keras: what is to be trained, and never part of a frozen model.
TRAINED = ("BatchNorm", "BatchNormalization", "Shift", "ResidualAffine", "RPReLU", "Dropout", "QuantDense")
TRAINED += (
    "QuantConv1D",
    "QuantConv2D",
    "QuantDepthwiseConv2D",
    "BinaryProjection",
    "MultiBranchAveragePooling",
    "ElasticBinarizer",
    "BinarySelfAttention",
)


def conv(size=3, padding="valid", **options):
    return layers.Conv2D(8, size, padding=padding, **options)


def norm(**options):
    return layers.BatchNormalization(**options)


def after(*steps):
    """Returns the function that applies `steps` one after the other."""

    def apply(x):
        for step in steps:
            x = step(x)
        return x

    return apply


def fork(*branches, join=layers.Add):
    return lambda x: join()([branch(x) for branch in branches])


def same(x):
    return x


# A network on maps of 6 x 6 x 8, and the layers that are left of it.
NETWORKS = {
    "chain of affines": ((norm(), layers.Dropout(0.3), Shift(), ResidualAffine()), {"Affine": 1}),
    "chain of shifts": ((Shift(), RPReLU(), Shift(), Shift()), {"AddConstant": 2, "PReLU": 1}),
    "convolution, norm": ((conv(use_bias=False), norm()), {"Convolution": 1}),
    "norm, convolution": ((norm(), conv()), {"Convolution": 1}),
    "norm between convolutions": ((conv(), norm(), conv(1)), {"Convolution": 2}),
    "norm before a padded one": ((norm(), conv(padding="same")), {"Affine": 1, "Convolution": 1}),
    "norm between, padded": ((conv(), norm(), conv(padding="same")), {"Convolution": 2}),
    "norm, groups": ((conv(groups=4), norm(), conv(groups=2)), {"Convolution": 2}),
    "norm, relu, norm": ((conv(), norm(), layers.ReLU(), norm(), conv(1)), {"Convolution": 2, "ReLU": 1}),
    "norm before a mean": (
        (norm(), layers.GlobalAveragePooling2D(), layers.Dense(3)),
        {"GlobalAveragePooling": 1, "Dense": 1},
    ),
    "norm between dense layers": ((layers.Dense(5), norm(), layers.Dense(3)), {"Dense": 2}),
    "threshold": ((conv(), norm(), kb.layers.QuantDense(4, **BINARY)), {"Convolution": 2, "Sign": 1}),
    "two thresholds": (
        (conv(), norm(), fork(*[after(Shift(), kb.layers.QuantDense(4, **BINARY)) for _ in range(2)])),
        {"Convolution": 3, "Sign": 2, "AddConstant": 1, "Add": 1},
    ),
    "reshapes that undo each other": (
        (layers.Reshape((36, 8)), *2 * (kb.layers.QuantConv1D(8, 3, padding="same", **BINARY), norm())),
        {"Reshape": 3, "Affine": 1, "Sign": 2, "Convolution": 2},
    ),
    "norm before the branches": ((norm(), MultiBranchAveragePooling()), {"Affine": 1, "DepthwiseConvolution": 1}),
    "norm within": ((conv(), norm(), MultiBranchAveragePooling()), {"Convolution": 1, "DepthwiseConvolution": 1}),
    "branches beside a shortcut": (
        (conv(), fork(same, RPReLU(), MultiBranchAveragePooling())),
        {"Convolution": 1, "AddConstant": 1, "PReLU": 1, "DepthwiseConvolution": 1, "Add": 1},
    ),
    "one norm for both": (
        (conv(), norm(), fork(conv(1), conv(1))),
        {"Convolution": 3, "Add": 1},
    ),
    "norm and what it reads": (
        (conv(), fork(same, after(norm(), conv(1)), same)),
        {"Convolution": 2, "Add": 1},
    ),
    "a shift left to the sum": ((fork(norm(), layers.ReLU()),), {"Affine": 1, "Add": 1, "ReLU": 1}),
    "projection": (
        (kb.layers.BinaryProjection(8),),
        {"AddConstant": 2, "Sign": 1, "Convolution": 1, "Add": 1, "PReLU": 1},
    ),
    "merging": (
        (kb.layers.PatchMerging(16),),
        {"Affine": 1, "Sign": 1, "Convolution": 1, "AveragePooling": 1, "Tile": 1, "Add": 1, "PReLU": 1}
        | {"AddConstant": 1},
    ),
    "real merging": ((kb.layers.PatchMerging(16, binary=False),), {"Convolution": 1, "AddConstant": 1}),
    "embedding": ((kb.layers.PatchEmbedding(16, 2),), {"Convolution": 1, "AddConstant": 1}),
    "class token": (
        (kb.layers.PatchEmbedding(16, 2, use_norm=False, use_class_token=True),),
        {"Convolution": 1, "Reshape": 1, "ZeroPadding2D": 1, "AddConstant": 1},
    ),
    "block": (
        (kb.layers.BinaryTransformerBlock(2, 2, 2),),
        {"Sign": 7, "Convolution": 7, "FloatSign": 3, "Attention": 1, "Affine": 5, "AddConstant": 5, "Add": 11}
        | {"PReLU": 8, "AveragePooling": 1, "Upsampling": 1, "Tile": 1, "GroupMean": 1, "DepthwiseConvolution": 1},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_that_are_left(name):
    steps, expected = NETWORKS[name]
    keras.utils.clear_session(free_memory=False)
    model = functional((6, 6, 8), after(*steps))
    frozen = kb.deploy.freeze(model)
    assert_same(frozen, model, images(model, 16), exceptions=1)
    counts = kinds(frozen)
    extra = {kind: n for kind, n in counts.items() if n > expected.get(kind, 0)}
    # Fewer are welcome: then this table is to be lowered.
    assert not extra, f"{extra} of {counts}"
    assert not set(counts) & set(TRAINED)
    assert {kind: counts.get(kind, 0) for kind in expected} == expected


def test_no_trained_layer_is_left():
    frozen = kb.deploy.freeze(pyramid())
    assert not {type(layer).__name__ for layer in frozen._flatten_layers()} & set(TRAINED)
    counts = kinds(frozen)
    assert counts["Affine"] <= 11 and counts["AddConstant"] <= 11


# --- Constants: computed in float64, rounded once ---


def affine_of(layer):
    scale = float64(layer.gamma) / np.sqrt(float64(layer.moving_variance) + layer.epsilon)
    return scale, float64(layer.beta) - float64(layer.moving_mean) * scale


def test_constants_are_rounded_once():
    steps = conv(1), norm(), conv(1)
    frozen = kb.deploy.freeze(functional((6, 6, 8), after(*steps)))
    first, second = (layer for layer in frozen.layers if layer.variables)
    scale, shift = affine_of(steps[1])
    # Where the affine goes is up to folding: the product of both convolutions isn't.
    before = float64(steps[0].kernel)[0, 0], float64(steps[2].kernel)[0, 0]
    after_kernels = float64(first.kernel)[0, 0], float64(second.kernel)[0, 0]
    expected = (before[0] * scale) @ before[1]
    np.testing.assert_allclose(after_kernels[0] @ after_kernels[1], expected, atol=2e-7 * np.abs(expected).max())
    bias = float64(steps[0].bias) * scale + shift
    expected = bias @ before[1] + float64(steps[2].bias)
    actual = float64(first.bias) @ after_kernels[1] + float64(second.bias)
    np.testing.assert_allclose(actual, expected, atol=2e-7 * np.abs(expected).max())


def test_one_constant_is_the_nearest_float():
    """Its exact value, in float64, rounded to float32: rounding on the way would show in some channel."""
    steps = [step for _ in range(3) for step in (norm(epsilon=1e-5), ResidualAffine(), Shift())]
    frozen = kb.deploy.freeze(functional((64,), after(*steps)))
    scale, shift = np.ones(64), np.zeros(64)
    for step in steps:
        if isinstance(step, Shift):
            a, b = np.ones(64), float64(step.shift)
        elif isinstance(step, ResidualAffine):
            a, b = float64(step.scale), float64(step.shift)
        else:
            a, b = affine_of(step)
        scale, shift = scale * a, shift * a + b
    (layer,) = (layer for layer in frozen.layers if layer.variables)
    np.testing.assert_array_equal(numpy(layer.kernel).reshape(-1), scale.astype(np.float32))
    np.testing.assert_array_equal(numpy(layer.bias), shift.astype(np.float32))


def test_cross_of_the_branches():
    layer = MultiBranchAveragePooling()
    frozen = kb.deploy.freeze(functional((6, 6, 8), layer))
    (folded,) = (layer for layer in frozen.layers if layer.variables)
    by_size = {window: float64(affine.scale) for window, affine in zip(layer.windows, layer.affines, strict=True)}
    expected = np.zeros((5, 5, 8))
    for (height, width), scale in by_size.items():
        for row in range(height):
            for column in range(width):
                expected[row + (5 - height) // 2, column + (5 - width) // 2] += scale / (height * width)
    np.testing.assert_allclose(numpy(folded.kernel)[..., 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(
        numpy(folded.bias), sum(float64(affine.shift) for affine in layer.affines).astype(np.float32)
    )


# --- Where folding would be wrong ---


@pytest.mark.parametrize("reader", [conv(padding="same"), MultiBranchAveragePooling(), conv(5, "same", strides=2)])
@pytest.mark.parametrize("source", [same, conv(), layers.ReLU(), fork(same, layers.ReLU())], ids=range(4))
def test_borders_of_padded_convolutions(source, reader):
    """A shift before zeros around a map is no shift of the zeros."""
    reader = type(reader).from_config(reader.get_config())
    model = functional((6, 6, 8), after(source, norm(), reader))
    for variable in model.variables:
        if "beta" in variable.path:
            variable.assign(variable + 5)
    assert_same(kb.deploy.freeze(model), model, images(model))


@pytest.mark.parametrize("gamma, beta", [(1e-3, 1.0), (1e-6, 1.0), (1e-12, 1.0), (1e-30, 1.0), (0.0, 1.0), (1e-6, 1e6)])
def test_channels_that_are_scaled_by_almost_nothing(gamma, beta):
    """Moving the map by beta / gamma would lose its digits, in this channel or for its other readers."""
    bn = norm()
    model = functional((6, 6, 8), after(conv(), fork(after(bn, conv(padding="same")), layers.ReLU(), same)))
    bn.gamma.assign(np.where(np.arange(8) % 4 == 1, gamma, numpy(bn.gamma)))
    bn.beta.assign(np.where(np.arange(8) % 4 == 1, beta, numpy(bn.beta)))
    assert_same(kb.deploy.freeze(model), model, images(model))


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_a_shortcut_beside_the_branches_counts_once(copies):
    """x + x + pooled(x): the kernel's middle takes in one of them."""

    def network(x):
        x = conv()(x)
        return layers.Add()([*[x] * copies, MultiBranchAveragePooling()(norm()(x)), layers.ReLU()(x)])

    model = functional((6, 6, 8), network)
    assert_same(kb.deploy.freeze(model), model, images(model))


def test_branches_that_others_read_too():
    def network(x):
        x = conv()(x)
        y = MultiBranchAveragePooling()(x)
        return [layers.Add()([x, y, layers.ReLU()(x)]), layers.ReLU()(y), y]

    model = functional((6, 6, 8), network)
    assert_same(kb.deploy.freeze(model), model, images(model))


def test_a_map_with_many_readers():
    """Each wants another affine of the same map, and one the map itself."""

    def network(x):
        x = layers.Add()([conv(1)(x), conv(1)(x)])
        readers = [
            conv(),
            conv(padding="same"),
            layers.GlobalAveragePooling2D(),
            layers.ReLU(),
            MultiBranchAveragePooling(),
            kb.layers.BinaryProjection(16),
            kb.layers.BinaryProjection(4),
            kb.layers.PatchMerging(16),
            layers.MaxPooling2D(),
            layers.Dense(3),
        ]
        return [x, norm()(x), *[reader(step(x)) for reader in readers for step in (norm(), Shift())]]

    model = functional((6, 6, 8), network)
    assert_same(kb.deploy.freeze(model), model, images(model, 16), exceptions=1)


def test_a_sum_that_is_read_twice():
    """What one reader asks of a sum mustn't change what another reads of its terms."""

    def network(x):
        a, b = conv(1)(x), conv(1)(x)
        total = layers.Add()([a, b])
        return [Shift()(total), layers.Add()([total, a, b]), layers.ReLU()(a), layers.Add()([Shift()(total)] * 2)]

    model = functional((6, 6, 8), network)
    assert_same(kb.deploy.freeze(model), model, images(model))


def test_norm_variants():
    def network(x):
        for options in ({"scale": False}, {"center": False}, {"scale": False, "center": False}, {"epsilon": 0.5}):
            x = layers.ReLU()(norm(**options)(x) + 0.1)
        return [x, norm(axis=3)(x), norm(axis=1)(x), norm(axis=2)(x), norm(axis=-2)(x)]

    model = functional((6, 6, 6), network)
    assert_same(kb.deploy.freeze(model), model, images(model))


def test_outputs_of_every_kind_of_node():
    """An affine that nobody reads but the caller."""
    model = functional(
        (6, 6, 8),
        lambda x: [
            ResidualAffine()(x),
            ResidualAffine()(conv()(x)),
            ResidualAffine()(layers.GlobalAveragePooling2D()(x)),
            ResidualAffine()(RPReLU()(x)),
            ResidualAffine()(fork(same, RPReLU())(x)),
            ResidualAffine()(kb.layers.BinaryProjection(16)(x)),
            ResidualAffine()(layers.Flatten()(x)),
        ],
    )
    assert_same(kb.deploy.freeze(model), model, images(model, 16), exceptions=1)


def test_random_weights_of_a_block():
    """Folding depends on signs and sizes of the weights: several of them."""
    model = functional((4, 4, 8), kb.layers.BinaryTransformerBlock(2, 2, 2))
    for seed in range(5):
        randomize(model, seed)
        assert_same(kb.deploy.freeze(model), model, images(model, 16, seed), exceptions=2)


def test_batch_norm_of_the_library():
    model = functional((6, 6, 8), BatchNorm())
    assert_same(kb.deploy.freeze(model), model, images(model))
