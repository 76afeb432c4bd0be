"""What the tests of freezing and conversion share: weights that show mistakes, comparisons, small models."""

import contextlib
import importlib

import keras
import numpy as np
import pytest
from layer_checks import numpy
from requirements import HAS_LCE

import keras_binaryvit as kb
from keras_binaryvit.deploy.freeze import binary_layers

CONVERTERS = ["lce", "tensorflow"] if HAS_LCE else ["tensorflow"]
BINARY = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign"}


def randomize(model, seed=0):
    """Gives every variable a value that shows mistakes: signs of both kinds, no neutral shift or scale, some zeros."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        name = variable.path.rpartition("/")[-1]
        value = rng.normal(0, 0.5, variable.shape)
        if "seed" in name:
            continue
        if name == "clip":
            value = 0.05
        elif "variance" in name:
            value = np.abs(value) + 0.3
        elif name in ("gamma", "scale"):
            value = rng.choice([-1, 1], variable.shape) * rng.uniform(0.5, 1.5, variable.shape)
        variable.assign(value)
    return model


def images(model, count=8, seed=1):
    """Returns random inputs in the structure that `model` takes; unknown sides are 6."""
    rng = np.random.default_rng(seed)
    return keras.tree.map_structure(
        lambda tensor: rng.normal(size=(count, *(side or 6 for side in tensor.shape[1:]))).astype("float32"),
        model.inputs[0] if isinstance(model, keras.Sequential) else model.input,
    )


def sample_errors(actual, expected):
    """Returns for each sample the largest difference, relative to the largest magnitude in all samples."""
    actual, expected = numpy(actual), numpy(expected)
    assert actual.shape == expected.shape and actual.dtype == expected.dtype == "float32"
    assert np.isfinite(expected).all()
    difference = np.abs(actual - expected).reshape(len(expected), -1).max(axis=1, initial=0)
    return difference / np.abs(expected).max(initial=1e-3)


def assert_same(frozen, model, x, share=1e-5, exceptions=0):
    """Checks that the models give the same in the same structure, and returns the largest relative difference.

    Rounding flips a bit within 1e-6 or so of its threshold: about one in a million. `exceptions` is the number of
    samples that may differ for it; a wrong constant changes most of them.
    """
    expected, actual = model(x, training=False), frozen(x, training=False)
    keras.tree.assert_same_structure(actual, expected)
    pairs = zip(keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True)
    errors = np.max([sample_errors(*pair) for pair in pairs], axis=0)
    assert np.sum(errors > share) <= exceptions, errors
    return float(np.sort(errors)[-1 - exceptions])


def assert_converts(model, x=None, exceptions=0, share=1e-5):
    """Checks that LCE computes what the frozen model does, binary layers in bits; returns the operators' counts."""
    x = images(model, 16) if x is None else x
    frozen = kb.deploy.freeze(model)
    flatbuffer = kb.deploy.convert(frozen)
    ops = kb.deploy.count_operators(flatbuffer)
    assert ops["LceBconv2d"] == len(binary_layers(frozen))
    expected = keras.ops.convert_to_numpy(frozen(x))
    actual = kb.deploy.run(flatbuffer, x).reshape(expected.shape)
    assert np.sum(sample_errors(actual, expected) > share) <= exceptions
    return ops


@contextlib.contextmanager
def unchecked_freezing():
    """Leaves out what takes most of the time of converting a large network, where other tests check freezing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("keras_binaryvit.deploy.freeze"), "check_frozen", lambda *arguments: None)
        yield


def pyramid(**options):
    """Returns a pyramid of two stages, with all that a larger one has."""
    defaults = {"image_shape": (16, 16, 3), "num_classes": 5, "patch_size": 2, "embed_dims": (16, 32), "depths": (1, 1)}
    defaults |= {"num_heads": (1, 2), "sr_ratios": (2, 1), "mlp_ratios": (2, 2)}
    return randomize(kb.BinaryViT(**(defaults | options)))


def functional(shape, function, seed=0):
    """Returns the model of `function`, from a tensor to its outputs, with random weights."""
    inputs = keras.Input(shape)
    return randomize(keras.Model(inputs, function(inputs)), seed)


def kinds(frozen):
    """Returns how many layers of each class a frozen model has, but for inputs."""
    counts: dict = {}
    for layer in frozen.layers:
        if not isinstance(layer, keras.layers.InputLayer):
            counts[type(layer).__name__] = counts.get(type(layer).__name__, 0) + 1
    return counts
