"""BinaryViT: its presets, stages, saving and training."""

import inspect

import keras
import numpy as np
import pytest
from layer_checks import normal, numpy, randomize

from keras_binaryvit import BinaryViT
from keras_binaryvit.layers import BinaryTransformerBlock, PatchMerging
from keras_binaryvit.models.binaryvit import PRESETS

TWO_STAGES = {
    "image_shape": (16, 16, 3),
    "num_classes": 3,
    "patch_size": 2,
    "embed_dims": (4, 8),
    "depths": (1, 1),
    "num_heads": (1, 2),
    "sr_ratios": (2, 1),
    "mlp_ratios": (2, 1),
}
ONE_STAGE = {"embed_dims": (4,), "depths": (1,), "num_heads": (2,), "sr_ratios": (2,), "mlp_ratios": (1,)}


def small(**changes):
    return BinaryViT(**{**TWO_STAGES, **changes})


def size(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


@pytest.mark.once
def test_small_has_the_papers_parameters():
    model = BinaryViT.from_preset("binaryvit_small")
    assert model.name == "binaryvit_small"
    assert (model.input_shape, model.output_shape) == ((None, 224, 224, 3), (None, 1000))
    assert size(model.trainable_weights) == 22_491_771
    binarized = [
        layer.kernel
        for layer in model._flatten_layers()
        if getattr(layer, "is_binary", False) and layer.kernel_quantizer is not None
    ]
    assert size(binarized) == 21_196_800
    assert size([kernel for kernel in binarized if len(kernel.shape) == 4]) == 688_128
    assert {"binaryvit_small", "binaryvit_small_fp_merging", "binaryvit_tiny_32"} <= set(PRESETS)


def test_preset_with_real_merging():
    model = BinaryViT.from_preset(
        "binaryvit_small_fp_merging", image_shape=(64, 64, 3), depths=(1, 1, 1, 1), sr_ratios=(2, 2, 1, 1)
    )
    mergings = [layer for layer in model.layers if isinstance(layer, PatchMerging)]
    assert [layer.embed_dim for layer in mergings] == [128, 256, 512]
    assert not any(layer.binary or layer.convolution.is_binary for layer in mergings)


@pytest.mark.parametrize("patch_size, filters", [(2, [8]), (4, [4, 8])])
def test_stem_of_convolutions(patch_size, filters):
    model = BinaryViT(
        (32, 16, 3), 10, patch_size, (16,), (1,), (1,), (1,), (1,), stem="convolutions", dtype="mixed_float16"
    )
    stem = [layer for layer in model.layers if layer.name.startswith("stem_convolution")]
    assert [layer.filters for layer in stem] == filters
    assert [layer.kernel_size for layer in stem] == [(3, 3)] * len(filters)
    assert [layer.strides[0] for layer in stem] == [1, 2][: len(filters)]
    assert model.get_layer("block_0").input.shape == (None, 32 // patch_size, 16 // patch_size, 16)
    assert all(layer.dtype_policy.name == "mixed_float16" for layer in stem)


def test_tiny_preset_with_overrides():
    model = BinaryViT.from_preset("binaryvit_tiny_32", num_classes=7, depths=(1, 1, 1), name="mine")
    assert (model.name, model.num_classes, model.depths) == ("mine", 7, (1, 1, 1))
    assert model.embed_dims == PRESETS["binaryvit_tiny_32"].config["embed_dims"]
    assert model.output_shape == (None, 7)
    assert PRESETS["binaryvit_tiny_32"].config["num_classes"] == 10


def test_unknown_preset():
    with pytest.raises(ValueError, match="'binaryvit_huge'.*binaryvit_small, binaryvit_small_fp_merging"):
        BinaryViT.from_preset("binaryvit_huge")


@pytest.mark.parametrize(
    "changes",
    [
        {**ONE_STAGE, "depths": (2,)},
        {"image_shape": (8, 24, 1), "binary_patch_merging": False, "embed_dims": (4, 6)},
        {
            "image_shape": (32, 16, 3),
            "embed_dims": (4, 4, 8),
            "depths": (1, 2, 1),
            "num_heads": (1, 2, 4),
            "sr_ratios": (4, 2, 1),
            "mlp_ratios": (1, 2, 3),
        },
    ],
    ids=["one-stage", "real-merging", "three-stages"],
)
def test_any_stages_and_image_shapes(changes):
    model = small(**changes)
    arguments = {**TWO_STAGES, **changes}
    blocks = [layer for layer in model.layers if isinstance(layer, BinaryTransformerBlock)]
    stages = [stage for stage, depth in enumerate(arguments["depths"]) for _ in range(depth)]
    for block, stage in zip(blocks, stages, strict=True):
        side = arguments["patch_size"] * 2**stage
        rows, columns, _ = arguments["image_shape"]
        assert block.input.shape[1:] == (rows // side, columns // side, arguments["embed_dims"][stage])
        assert block.attention.num_heads == arguments["num_heads"][stage]
        assert block.attention.reduction == arguments["sr_ratios"][stage]
        assert block.feed_forward.expansion == arguments["mlp_ratios"][stage]
    assert model.input_shape == (None, *arguments["image_shape"])
    assert model.output_shape == (None, 3)
    assert [layer.binary for layer in model.layers if isinstance(layer, PatchMerging)] == [
        arguments.get("binary_patch_merging", True)
    ] * (len(arguments["depths"]) - 1)


def test_drop_path_rises_linearly():
    model = small(depths=(2, 3), drop_path_rate=0.4)
    rates = [layer.drop_path_rate for layer in model.layers if isinstance(layer, BinaryTransformerBlock)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4])
    assert [layer.drop_path.rate for layer in model.layers if isinstance(layer, BinaryTransformerBlock)] == rates


def test_config_round_trip():
    arguments = {
        **TWO_STAGES,
        "drop_path_rate": 0.25,
        "binary_probabilities": False,
        "remat": True,
        "input_quantizer": "ste_sign",
        "kernel_quantizer": "magnitude_aware_sign",
        "conv_kernel_quantizer": "swish_sign",
        "dtype": "mixed_bfloat16",
        "name": "mine",
    }
    model = BinaryViT(**arguments)
    config = model.get_config()
    clone = BinaryViT.from_config(config)
    assert clone.get_config() == config
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model)).get_config() == config
    assert set(config) == set(inspect.signature(BinaryViT).parameters)
    for name, value in arguments.items():
        assert config[name] == value or name.endswith("quantizer") or name == "dtype"
    assert [(weight.path, weight.shape) for weight in clone.weights] == [
        (weight.path, weight.shape) for weight in model.weights
    ]
    block, merging = clone.get_layer("block_1"), clone.get_layer("patch_merging_1").convolution
    for layer, kernel_quantizer in ((block.feed_forward.reduce.dense, "MagnitudeAwareSign"), (merging, "SwishSign")):
        assert type(layer.kernel_quantizer).__name__ == kernel_quantizer
        assert type(layer.input_quantizer).__name__ == "SteSign"
    assert block.feed_forward.expand.dtype_policy.name == "mixed_bfloat16"


def test_fits():
    model = small(**ONE_STAGE, drop_path_rate=0.2)
    before = model.get_weights()
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(normal(64, 16, 16, 3), np.arange(64) % 3, batch_size=32, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    unchanged = [
        weight.path
        for weight, value in zip(model.trainable_weights, before, strict=False)
        if np.array_equal(numpy(weight), value)
    ]
    assert len(unchanged) < len(before) / 4
    assert all(np.isfinite(value).all() for value in model.get_weights())


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_logits_are_float32_under_mixed_policies(policy):
    model = small(**ONE_STAGE, dtype=policy)
    logits = model(normal(2, 16, 16, 3))
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert np.isfinite(numpy(logits)).all()
    block = model.get_layer("block_0")
    assert keras.backend.standardize_dtype(block.output.dtype) == policy.removeprefix("mixed_")
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in model.trainable_weights} == {"float32"}


def test_losses_are_scaled_in_float16():
    model = small(dtype="mixed_float16")
    model.compile("sgd", "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"embed_dims": (4,)}, "'embed_dims': 1, 'depths': 2"),
        ({"mlp_ratios": (2, 2, 2)}, "'mlp_ratios': 3"),
        ({"image_shape": (16, 16)}, r"image_shape=\(16, 16\)"),
        ({"image_shape": (15, 16, 3)}, "map 15x16"),
        ({"image_shape": (18, 16, 3)}, "reduction=2, map 9x8"),
        ({"image_shape": (18, 16, 3), "sr_ratios": (1, 1)}, "map 9x8"),
        ({"image_shape": (16, None, 3)}, r"image_shape=None"),
        ({"patch_size": 3}, "multiples of 3.*map 16x16"),
        ({"stem": "convolution"}, "stem must be 'patches' or 'convolutions'.*stem='convolution'"),
        ({"stem": "convolutions", "patch_size": 3}, "a patch_size of 2, 4, 8.*patch_size=3"),
        ({"stem": "convolutions", "patch_size": 8, "embed_dims": (4, 8)}, r"divides embed_dims\[0\].*size=8"),
        ({"num_heads": (1, 3)}, "num_heads=3, channels=8"),
        ({"sr_ratios": (1, 0)}, "reduction=0"),
        ({"mlp_ratios": (1, 0)}, "expansion=0"),
        ({"embed_dims": (4, 6)}, "embed_dim=6, channels=4"),
        ({"num_classes": 0}, "units=0"),
        ({"drop_path_rate": 1.5}, "rate=1.5"),
        ({"kernel_quantizer": "no_such_sign"}, "'no_such_sign'"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize("shape", [(1, 18, 16, 3), (1, 16, 16, 4), (16, 16, 3)])
def test_wrong_images(shape):
    with pytest.raises(ValueError, match="incompatible"):
        small()(normal(*shape))


def features(**changes):
    return BinaryViT((16, 16, 3), 3, 2, (4, 8), (1, 2), (1, 2), (2, 1), (2, 1), include_top=False, **changes)


@pytest.mark.once
def test_features_are_what_the_head_reads():
    model = randomize(BinaryViT((16, 16, 3), 3, 2, (4, 8), (1, 2), (1, 2), (2, 1), (2, 1)))
    images = normal(2, 16, 16, 3)
    expected = numpy(keras.Model(model.input, model.get_layer("norm").output)(images))
    for pooling, pooled in ((None, expected), ("avg", expected.mean((1, 2))), ("max", expected.max((1, 2)))):
        without_top = features(pooling=pooling)
        without_top.set_weights(model.get_weights()[:-2])  # all but the head's
        np.testing.assert_allclose(numpy(without_top(images)), pooled, rtol=1e-5, atol=1e-5)
        clone = BinaryViT.from_config(without_top.get_config())
        assert clone.output_shape == without_top.output_shape


@pytest.mark.once
def test_trained_features():
    model = BinaryViT.from_preset("binaryvit_tiny_32_cifar10", include_top=False, pooling="avg")
    whole = BinaryViT.from_preset("binaryvit_tiny_32_cifar10")
    images = normal(2, 32, 32, 3)
    logits = numpy(whole.get_layer("head")(model(images)))
    np.testing.assert_allclose(logits, numpy(whole(images)), rtol=1e-4, atol=1e-4)


def test_pyramid_outputs_by_their_strides():
    model = features()
    assert {level: tuple(tensor.shape) for level, tensor in model.pyramid_outputs.items()} == {
        "P1": (None, 8, 8, 4),
        "P2": (None, 4, 4, 8),
    }
    outputs = keras.Model(model.inputs, model.pyramid_outputs)(normal(1, 16, 16, 3))
    expected = numpy(keras.Model(model.input, model.get_layer("block_2").output)(normal(1, 16, 16, 3)))
    np.testing.assert_array_equal(numpy(outputs["P2"]), expected)
    with pytest.raises(ValueError, match=r"strides \[3, 6\]"):
        BinaryViT((18, 18, 3), 3, 3, (4, 8), (1, 1), (1, 2), (1, 1), (1, 1)).pyramid_outputs  # noqa: B018


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_unknown_pooling(pooling):
    with pytest.raises(ValueError, match=f"pooling must be one of None, 'avg', 'max'. Received: pooling='{pooling}'"):
        features(pooling=pooling)


@keras.saving.register_keras_serializable("tests")
class Narrow(BinaryViT):
    """A subclass with an argument of its own, and others that it passes on."""

    def __init__(self, width, **kwargs):
        super().__init__((8, 8, 3), 3, 4, (width, 2 * width), (1, 1), (1, 2), (1, 1), (2, 2), **kwargs)


def test_subclasses(tmp_path):
    model = Narrow(8, drop_path_rate=0.25, class_names=["a", "b", "c"], name="mine")
    assert model.embed_dims == (8, 16) and model.class_names == ("a", "b", "c")
    assert (model.get_config()["width"], model.get_config()["drop_path_rate"]) == (8, 0.25)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is Narrow and loaded.get_config() == model.get_config()
    images = normal(2, 8, 8, 3)
    np.testing.assert_array_equal(numpy(loaded(images)), numpy(model(images)))
