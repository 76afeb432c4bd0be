"""DeiT: its presets, saving and training; its values are in test_parity.py."""

import inspect
import math

import keras
import numpy as np
import pytest
from layer_checks import normal, numpy, randomize

from keras_binaryvit import DeiT
from keras_binaryvit.models.deit import exact_gelu

SMALL = {"image_shape": (8, 12, 3), "num_classes": 3, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}


def small(**changes):
    return DeiT(**{**SMALL, **changes})


@pytest.mark.parametrize("preset, parameters", [("deit_tiny", 5_717_416), ("deit_small", 22_050_664)])
def test_presets_have_the_published_parameters(preset, parameters):
    model = DeiT.from_preset(preset)
    assert (model.name, model.input_shape, model.output_shape) == (preset, (None, 224, 224, 3), (None, 1000))
    assert model.count_params() == parameters


def test_other_presets():
    assert DeiT.presets["deit_base"].config.items() >= {"embed_dim": 768, "depth": 12, "num_heads": 12}.items()
    assert DeiT.from_preset("deit_base", depth=1, num_classes=7, name="mine").output_shape == (None, 7)
    with pytest.raises(ValueError, match="'deit_huge'.*deit_base, deit_small, deit_tiny"):
        DeiT.from_preset("deit_huge")


def test_layer_norms_have_the_authors_epsilon():
    norms = [layer for layer in small().layers if isinstance(layer, keras.layers.LayerNormalization)]
    assert [layer.epsilon for layer in norms] == [1e-5] * 5  # 1e-6 would be within the tolerance of the recording


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 101, dtype="float32")
    expected = [float(v) * (1 + math.erf(float(v) / math.sqrt(2))) / 2 for v in x]
    np.testing.assert_allclose(
        # 6 ulp of an erf of almost -1 are 4e-7, and half of |x| times that at most 1.1e-6. The tanh form is 5e-4 off.
        numpy(exact_gelu(keras.ops.convert_to_tensor(x))),
        expected,
        rtol=1e-6,
        atol=1.1e-6,
    )
    assert {small().get_layer(f"block_{i}_expand").activation for i in range(2)} == {exact_gelu}


def test_training_changes_nothing_without_drop_path():
    model, x = randomize(small()), normal(2, 8, 12, 3)
    np.testing.assert_array_equal(numpy(model(x, training=True)), numpy(model(x, training=False)))


def test_drop_path_drops_whole_samples_and_rises_linearly():
    model = small(depth=3, drop_path_rate=0.4)
    drops = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    np.testing.assert_allclose([layer.rate for layer in drops], [0, 0, 0.2, 0.2, 0.4, 0.4])
    dropped = numpy(drops[-1](np.ones((64, 5, 8), "float32"), training=True))
    np.testing.assert_allclose(dropped, np.broadcast_to(dropped[:, :1, :1], dropped.shape))
    assert {round(float(value), 3) for value in np.unique(dropped)} == {0, round(1 / 0.6, 3)}


def test_config_round_trip():
    arguments = {**SMALL, "mlp_ratio": 2, "drop_path_rate": 0.25, "dtype": "mixed_bfloat16", "name": "mine"}
    model = DeiT(**arguments)
    config = model.get_config()
    assert set(config) == set(inspect.signature(DeiT).parameters)
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    assert clone.get_config() == config
    assert {key: config[key] for key in SMALL} == SMALL
    assert [(w.path, w.shape) for w in clone.weights] == [(w.path, w.shape) for w in model.weights]
    assert clone.get_layer("block_1_expand").dtype_policy.name == "mixed_bfloat16"
    logits = clone(normal(2, 8, 12, 3))
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"


def test_fits():
    model = small(drop_path_rate=0.1)
    before = [numpy(weight) for weight in model.trainable_weights]
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(normal(32, 8, 12, 3), np.arange(32) % 3, batch_size=16, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    changed = [not np.array_equal(numpy(w), v) for w, v in zip(model.trainable_weights, before, strict=True)]
    assert np.mean(changed) > 0.75


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_shape": (8, 12)}, r"image_shape=\(8, 12\)"),
        ({"image_shape": (8, 10, 3)}, "multiples of 4.*map 8x10"),
        ({"depth": 0}, "depth=0"),
        ({"num_heads": 3}, "num_heads=3, embed_dim=8"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
        ({"num_classes": 0}, "units=0"),
        ({"drop_path_rate": 1.5}, "rate=1.5"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)
