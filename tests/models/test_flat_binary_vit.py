"""BinaryViT with one stage: the rows of the ablation, saving and training; its values are in test_parity.py."""

import inspect

import keras
import numpy as np
import pytest
from layer_checks import flat_vit, normal, numpy, randomize

from keras_binaryvit import BinaryViT
from keras_binaryvit.layers import BinaryTransformerBlock

SMALL = {"image_shape": (8, 12, 3), "num_classes": 3, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
PRESETS = [name for name in BinaryViT.presets if name.startswith("reactdeit")]
ROWS = [
    {"use_class_token": True, "use_pooling_branches": False, "use_affine": False},
    {"use_class_token": False, "use_pooling_branches": False, "use_affine": False},
    {"use_class_token": False, "use_pooling_branches": True, "use_affine": False},
    {"use_class_token": False, "use_pooling_branches": True, "use_affine": True},
]


def small(**changes):
    return flat_vit(**{**SMALL, **changes})


def size(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


def test_presets_are_the_four_rows():
    for name, row in zip(PRESETS, ROWS, strict=True):
        model = BinaryViT.from_preset(name, depths=(1,), num_classes=7)
        assert (model.name, model.num_classes, model.embed_dims, model.patch_size) == (name, 7, (384,), 16)
        assert (model.num_heads, model.mlp_ratios, model.use_patch_norm) == ((6,), (4,), False)
        assert {key: getattr(model, key) for key in row} == row
        assert {"depths": (12,), "num_classes": 1000}.items() <= BinaryViT.presets[name].config.items()
    with pytest.raises(ValueError, match="'deit_small' is a DeiT, not a BinaryViT"):
        BinaryViT.from_preset("deit_small")


def test_parameters_of_the_rows():
    channels, hidden = 384, 4 * 384
    patches = 16 * 16 * 3 * channels + channels + 196 * channels
    head = 2 * channels + channels * 1000 + 1000
    norm_and_rprelu = 5
    # query, key, value, output, expand, reduce: shift, kernel, norm and RPReLU; three shifts before the signs, the
    # clip, context's norm and RPReLU, two norms
    block = 4 * (channels + channels**2 + norm_and_rprelu * channels) + 3 * channels + 1
    block += channels + channels * hidden + norm_and_rprelu * hidden
    block += hidden + channels * hidden + norm_and_rprelu * channels
    block += norm_and_rprelu * channels + 2 * 2 * channels
    rows = [block, block, block + 4 * 2 * channels, block + 6 * 2 * channels]
    for i, (name, expected) in enumerate(zip(PRESETS, rows, strict=True)):
        token = 2 * channels if i == 0 else 0  # and its position
        model = BinaryViT.from_preset(name, depths=(2,))
        assert size(model.trainable_weights) == patches + token + 2 * expected + head
        binary = [layer.kernel for layer in model._flatten_layers() if getattr(layer, "is_binary", False)]
        assert size(binary) == 2 * (4 * channels**2 + 2 * channels * hidden)


@pytest.mark.parametrize("row", ROWS)
def test_maps_and_columns(row):
    model = small(**row)
    blocks = [layer for layer in model.layers if isinstance(layer, BinaryTransformerBlock)]
    shape = (None, 7, 1, 8) if row["use_class_token"] else (None, 2, 3, 8)
    assert [block.output.shape for block in blocks] == [shape] * 2
    assert model.output_shape == (None, 3)


def test_the_head_reads_the_token_alone():
    model = randomize(small(**ROWS[0]))
    tail = keras.Model(model.get_layer("norm").output, model.output)
    tokens = normal(2, 7, 1, 8)
    head = model.get_layer("head")
    expected = tokens[:, 0, 0] @ numpy(head.kernel) + numpy(head.bias)
    np.testing.assert_allclose(numpy(tail(tokens)), expected, rtol=1e-5, atol=1e-6)


def test_drop_path_rises_linearly():
    model = small(depth=3, drop_path_rate=0.4)
    rates = [layer.drop_path_rate for layer in model.layers if isinstance(layer, BinaryTransformerBlock)]
    np.testing.assert_allclose(rates, [0, 0.2, 0.4])


@pytest.mark.parametrize("row", ROWS)
def test_config_round_trip(row):
    arguments = {
        **SMALL,
        **row,
        "mlp_ratio": 2,
        "drop_path_rate": 0.25,
        "binary_probabilities": False,
        "remat": True,
        "input_quantizer": "ste_sign",
        "kernel_quantizer": "magnitude_aware_sign",
        "dtype": "mixed_bfloat16",
        "name": "mine",
    }
    model = flat_vit(**arguments)
    config = model.get_config()
    assert set(config) == set(inspect.signature(BinaryViT).parameters)
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    assert clone.get_config() == config
    assert {key: config[key] for key in row} == row
    assert (config["embed_dims"], config["depths"], config["mlp_ratios"]) == ((8,), (2,), (2,))
    assert [(weight.path, weight.shape) for weight in clone.weights] == [
        (weight.path, weight.shape) for weight in model.weights
    ]
    reduce = clone.get_layer("block_1").feed_forward.reduce.dense
    assert type(reduce.kernel_quantizer).__name__ == "MagnitudeAwareSign"
    assert type(reduce.input_quantizer).__name__ == "SteSign"


@pytest.mark.once
@pytest.mark.parametrize("row", [ROWS[0], ROWS[3]])
def test_fits(row):
    model = small(**row, drop_path_rate=0.2)
    before = [numpy(weight) for weight in model.trainable_weights]
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(normal(32, 8, 12, 3), np.arange(32) % 3, batch_size=16, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    changed = [not np.array_equal(numpy(w), v) for w, v in zip(model.trainable_weights, before, strict=True)]
    assert np.mean(changed) > 0.75


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"use_class_token": True}, "class_token=True, use_pooling_branches=True"),
        ({"pooling": "token"}, "pooling='token', use_class_token=False"),
        ({"image_shape": (8, 12)}, r"image_shape=\(8, 12\)"),
        ({"image_shape": (8, 10, 3)}, "multiples of 4.*map 8x10"),
        ({"depth": 0}, "depths=0"),
        ({"num_heads": 3}, "num_heads=3, channels=8"),
        ({"mlp_ratio": 1.5}, "expansion=1.5"),
        ({"num_classes": 0}, "units=0"),
        ({"kernel_quantizer": "no_such_sign"}, "'no_such_sign'"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)
