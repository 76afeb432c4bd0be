"""freeze compares its result with the model, and names the layer that differs."""

import importlib

import keras
import numpy as np
import pytest
from deploy_checks import assert_same, functional, images, pyramid
from keras import layers

import keras_binaryvit as kb
from keras_binaryvit.deploy import lower
from keras_binaryvit.deploy.compare import whole_difference
from keras_binaryvit.deploy.fold import fold


class Noisy(layers.Layer):
    """Gives something else each time."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(1)

    def call(self, inputs):
        return inputs + keras.random.normal((1, inputs.shape[-1]), seed=self.seed)


def test_a_layer_that_draws_random_numbers():
    model = functional((8,), lambda x: layers.Dense(3)(Noisy(name="noisy")(x)))
    with pytest.raises(kb.deploy.ConversionError, match="'noisy'.*check=False"):
        kb.deploy.freeze(model)
    kb.deploy.freeze(model, check=False)


@pytest.mark.parametrize("ops", ["lce", "fused"])
@pytest.mark.parametrize("relative", [1e-2, 1e-3])
def test_a_wrong_rule(relative, ops, monkeypatch):
    """A shift of one channel of one layer, by little."""
    right = lower.norm_affine

    def wrong(layer):
        scale, shift = right(layer)
        if layer.path.endswith("block_1/attention/query/norm"):
            shift[0] += relative * 100  # a sum of 16 signs is what it is added to
        return scale, shift

    monkeypatch.setattr(lower, "norm_affine", wrong)
    monkeypatch.setattr("keras_binaryvit.deploy.lower_runtime.norm_affine", wrong)
    with pytest.raises(kb.deploy.ConversionError, match="'block_1'.*computes something else"):
        kb.deploy.freeze(pyramid(), ops)


@pytest.mark.parametrize("ops", ["lce", "fused"])
def test_wrong_folding(ops, monkeypatch):
    """What goes wrong between layers only, as each of them alone is right."""

    def wrong(graph):
        folded = fold(graph)
        if len(folded.nodes) > 10:  # the model, not one of its layers
            head = next(node for node in folded.nodes if node.name.endswith("head-dense"))
            head.constants["kernel"] = head.constants["kernel"][:, ::-1].copy()
        return folded

    model = pyramid()
    kb.deploy.freeze(model, ops)
    monkeypatch.setattr(importlib.import_module("keras_binaryvit.deploy.freeze"), "fold", wrong)
    with pytest.raises(kb.deploy.ConversionError, match="The output 0 differs by .* each of its layers"):
        kb.deploy.freeze(model, ops)


@pytest.mark.parametrize(
    "change, differs",
    [
        (lambda x: x, False),
        (lambda x: x * (1 + 1e-5), False),
        (lambda x: np.where(np.arange(4)[:, None] == 2, x, x + 1), False),  # one sample is right
        (lambda x: x + 0.01, True),  # much beside how samples differ, not beside 100
        (lambda x: x[::-1], True),
        (lambda x: np.where(np.arange(8) == 3, np.nan, x), True),
    ],
)
def test_whole_outputs(change, differs):
    expected = 100 + np.random.default_rng(0).normal(0, 0.1, (4, 8))
    found = whole_difference([np.zeros(3), change(expected)], [np.zeros(3), expected])
    assert (found is not None and found.startswith("The output 1 differs by ")) == differs


def test_whole_outputs_of_one_sample():
    expected = np.array([[1.0, np.inf, 3.0]])
    assert whole_difference([expected * 1.001], [expected]) is None
    assert "% of its size or more" in whole_difference([expected * 1.2], [expected])
    assert whole_difference([np.array([[3.0, np.inf, 1.0]])], [expected]) is not None


def patched(function):
    model = functional((8,), lambda x: layers.Dense(3, name="head")(layers.Dense(4, name="patched")(x)))
    layer = model.get_layer("patched")
    original = layer.call
    layer.call = lambda inputs, **kwargs: function(original(inputs))
    return model


def test_a_call_of_an_object():
    """What stands in no class is seen too: it is opened, or else the difference is found."""
    model = patched(keras.ops.round)
    assert_same(kb.deploy.freeze(model), model, images(model))
    with pytest.raises(kb.deploy.ConversionError, match="'patched'.*computes something else"):
        kb.deploy.freeze(patched(lambda x: 1.001 * x if isinstance(x, keras.KerasTensor) else 1.01 * x))
