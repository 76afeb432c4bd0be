"""BinarySelfAttention."""

import keras
import numpy as np
import pytest
from gradients import layer_gradients
from keras import ops
from layer_checks import assert_close, check_layer, float64, normal, np_attention, np_sign, numpy, randomize

from keras_binaryvit.layers import BinarySelfAttention


def attention(num_heads, reduction, shape, clip, **kwargs):
    layer = BinarySelfAttention(num_heads, reduction, **kwargs)
    layer.build(shape)
    randomize(layer)
    layer.binarizer.clip.assign(clip)
    return layer


@pytest.mark.parametrize("heads, reduction, shape", [(1, 1, (1, 1, 2, 2)), (2, 2, (2, 4, 2, 4))])
def test_is_a_keras_layer(heads, reduction, shape):
    check_layer(BinarySelfAttention(heads, reduction), shape, signs=True)


# (4, 2) on 4x6: 6 keys; a clip of 1.5 / keys lets about half of them through.
@pytest.mark.parametrize("heads, reduction, shape", [(1, 1, (2, 3, 4, 4)), (4, 2, (2, 4, 6, 8)), (2, 3, (1, 6, 6, 6))])
def test_values(heads, reduction, shape):
    keys = shape[1] * shape[2] // reduction**2
    layer, x = attention(heads, reduction, shape, clip=1.5 / keys), normal(*shape)
    outputs, scores = layer(x, return_attention_scores=True)
    expected_outputs, expected_scores = np_attention(layer, x)
    assert 0.1 < (expected_scores > 0).mean() < 0.9
    assert_close(numpy(scores), expected_scores)
    assert_close(numpy(outputs), expected_outputs)
    np.testing.assert_array_equal(numpy(layer(x)), numpy(outputs))
    assert scores.shape == (shape[0], heads, shape[1] * shape[2], keys)


@pytest.mark.parametrize("quantizer", [None, "approx_sign"])
def test_real_probabilities(quantizer):
    layer = BinarySelfAttention(2, 2, quantizer, None, binary_probabilities=False)
    x = normal(2, 4, 6, 8)
    layer.build(x.shape)
    randomize(layer)
    outputs, scores = layer(x, return_attention_scores=True)
    expected_outputs, expected_scores = np_attention(layer, x)
    assert_close(numpy(scores), expected_scores)
    assert_close(numpy(outputs), expected_outputs)
    assert not any("clip" in weight.path for weight in layer.weights)


def test_scores_in_a_functional_model():
    layer, x = attention(2, 2, (2, 4, 4, 4), clip=0.4, dtype="mixed_float16"), normal(2, 4, 4, 4)
    inputs = keras.Input(x.shape[1:])
    symbolic = layer(inputs, return_attention_scores=True)
    for actual, tensor in zip(keras.Model(inputs, symbolic)(x), symbolic, strict=True):
        assert tensor.shape == (None, *actual.shape[1:])
        assert tensor.dtype == keras.backend.standardize_dtype(actual.dtype)
    assert [tensor.shape[1:] for tensor in symbolic] == [(4, 4, 4), (2, 16, 4)]


def test_the_reducing_projection_exists_only_with_a_reduction():
    assert not hasattr(attention(1, 1, (1, 2, 2, 2), 0.1), "reduced")
    assert attention(1, 2, (1, 2, 2, 2), 0.1).reduced.built


# float16 counts to 2048, bfloat16 to 256; the maps have more keys.
@pytest.mark.parametrize("dtype, side", [("float16", 48), ("bfloat16", 20)])
def test_sums_over_keys_are_exact_in_mixed_precision(dtype, side, monkeypatch):
    shape = (1, side, side, 2)
    clip = np.float32(0.3 / side**2)
    layer = attention(1, 1, shape, clip, dtype=f"mixed_{dtype}")
    layer.value_shift.shift.assign([100.0, 0.1])  # the first channel's sum is the number of bits
    seen, values = [], []
    heads = layer._heads
    monkeypatch.setattr(layer.context_norm, "call", lambda x, **_: seen.append(x) or x)
    monkeypatch.setattr(layer, "_heads", lambda x: values.append(heads(x)) or values[-1])
    _, scores = layer(normal(*shape), return_attention_scores=True)
    bits = np.rint(numpy(scores)[0, 0] / clip).astype("int64")
    value = numpy(values[-1])[0, 0].astype("int64")
    sums = bits @ value
    assert sums.max() > {"float16": 2048, "bfloat16": 256}[dtype]
    expected = sums.astype("float32") * clip  # rounded to half precision once, after the product
    rounded = numpy(ops.cast(ops.cast(expected, dtype), "float32"))
    np.testing.assert_array_equal(numpy(ops.cast(seen[0], "float32")).reshape(-1, 2), rounded)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scores_are_exact_in_mixed_precision(dtype):
    channels = 514  # bfloat16 rounds integers above 256
    layer = BinarySelfAttention(1, dtype=f"mixed_{dtype}")
    layer.build((1, 2, 3, channels))
    query, key = normal(1, 2, 3, channels, seed=1), normal(1, 2, 3, channels, seed=2)
    key[0, 0, 0] = query[0, 0, 0]
    key[0, 0, 0, :128] *= -1  # the score of the first pair is 258
    key[0, 0, 1] = query[0, 0, 0]
    key[0, 0, 1, :127] *= -1  # and of the second 260
    scores = np_sign(query.reshape(6, channels)) @ np_sign(key.reshape(6, channels)).T / np.sqrt(channels)
    assert scores[0, 0] == 258 / np.sqrt(channels)
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    probabilities = numpy(layer.probabilities(query, key))
    assert probabilities.dtype == "float32"
    np.testing.assert_allclose(probabilities[0, 0], expected, rtol=1e-5)


def test_trains_its_clip():
    layer, x = attention(2, 1, (2, 3, 4, 4), clip=0.12), normal(2, 3, 4, 4)
    _, (to_x,), to_weights = layer_gradients(layer, x, upstream=normal(2, 3, 4, 4, seed=1))
    assert all(np.isfinite(gradient).all() for gradient in to_weights.values())
    untrained = {path for path, gradient in to_weights.items() if not gradient.any()}
    assert not untrained and to_x.any()
    assert float64(to_weights[layer.binarizer.clip.path]) != 0


@pytest.mark.parametrize("name", ["num_heads", "reduction"])
@pytest.mark.parametrize("value", [0, -2, 2.0, "2", None])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        BinarySelfAttention(**{name: value})


@pytest.mark.parametrize(
    "heads, reduction, shape, message",
    [
        (3, 1, (1, 2, 2, 4), "num_heads=3, channels=4"),
        (1, 2, (1, 3, 4, 4), "reduction=2, map 3x4"),
        (1, 4, (1, 4, 6, 4), "reduction=4, map 4x6"),
        (1, 1, (1, 4, 4), r"\(1, 4, 4\)"),
        (1, 1, (1, 1, 4, 4, 4), r"\(1, 1, 4, 4, 4\)"),
    ],
)
def test_bad_shapes(heads, reduction, shape, message):
    with pytest.raises(ValueError, match=message):
        BinarySelfAttention(heads, reduction)(normal(*shape))
