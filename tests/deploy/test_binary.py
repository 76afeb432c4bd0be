"""binary_table: which layers are binary in the file, what keeps the others from it, and that it is true."""

import re

import numpy as np
import pytest
from deploy_checks import BINARY, assert_same, functional, images, pyramid
from keras import ops

import keras_binaryvit as kb
from keras_binaryvit.deploy.binary import binary_table, is_sign
from keras_binaryvit.deploy.freeze import binary_layers


def uneven(x):
    return ops.where(x >= 0, 1.0, -0.5)


def three_values(x):
    return ops.sign(x)


CASES = {
    "binary": (BINARY, "", ""),
    "no input quantizer": ({"kernel_quantizer": "ste_sign"}, "inputs aren't quantized", "input_quantizer="),
    "no kernel quantizer": ({"input_quantizer": "ste_sign"}, "kernel isn't quantized", "kernel_quantizer="),
    "0 and 1": ({**BINARY, "input_quantizer": "ste_heaviside"}, "SteHeaviside.*-1 below 0", "a sign"),
    "DoReFa": ({**BINARY, "kernel_quantizer": "dorefa_quantizer"}, "DoReFa.*one magnitude", "a sign"),
    "own function": ({**BINARY, "input_quantizer": three_values}, "three_values", "a sign"),
    "two magnitudes": ({**BINARY, "kernel_quantizer": uneven}, "uneven.*one magnitude", "a sign"),
    "groups": ({**BINARY, "groups": 4}, "4 groups has 16 channels.*32", "groups of 32"),
    "groups of words": ({**BINARY, "groups": 2}, "", ""),
    "padding with 0.5": ({**BINARY, "padding": "same", "pad_values": 0.5}, "pad_values=0.5", "pad_values=1"),
    "padding with -1": ({**BINARY, "padding": "same", "pad_values": -1, "strides": 2}, "", ""),
    "padding with 0": ({**BINARY, "padding": "same"}, "", ""),
}


@pytest.mark.parametrize("options, reason, remedy", CASES.values(), ids=CASES)
def test_convolutions(options, reason, remedy):
    model = functional((7, 6, 64), kb.layers.QuantConv2D(8, 3, name="here", **options))
    (row,) = binary_table(model)
    assert row.name == "here"
    assert row.binary == (not reason)
    assert re.search(reason, row.reason) and remedy in row.remedy
    frozen = kb.deploy.freeze(model)
    assert len(binary_layers(frozen)) == row.binary
    assert_same(frozen, model, images(model), exceptions=1)


@pytest.mark.parametrize("padding", ["same", "causal"])
@pytest.mark.parametrize("pad_values, binary", [(0, True), (1, True), (-1, True), (0.5, False)])
def test_sequences(padding, pad_values, binary):
    model = functional((7, 8), kb.layers.QuantConv1D(8, 3, padding=padding, pad_values=pad_values, **BINARY))
    (row,) = binary_table(model)
    assert row.binary == binary and row.claimed
    assert binary or (row.reason == "LCE can't pad with pad_values=0.5" and "pad_values=1" in row.remedy)
    frozen = kb.deploy.freeze(model)
    assert len(binary_layers(frozen)) == binary
    assert_same(frozen, model, images(model))


def test_depthwise_convolutions_are_never_binary():
    layers = [
        kb.layers.QuantDepthwiseConv2D(3, depthwise_quantizer="ste_sign", **o)
        for o in ({}, {"input_quantizer": "ste_sign"})
    ]
    model = functional((6, 6, 8), lambda x: [layer(x) for layer in layers])
    rows = binary_table(model)
    assert [row.binary for row in rows] == [False, False] and [row.claimed for row in rows] == [False, True]
    assert all("no interpreter has a binary product for a QuantDepthwiseConv2D" == row.reason for row in rows)
    assert_same(kb.deploy.freeze(model), model, images(model))
    profile = kb.profile.summary(model, print_fn=lambda text: None)
    assert profile.macs == {32: 2 * 4 * 4 * 3 * 3 * 8} and not profile.uncounted


def test_every_layer_with_quantizers_has_a_row():
    model = pyramid()
    assert len(binary_table(model)) == len(binary_layers(kb.deploy.freeze(model))) == 14
    assert all(row.binary and row.claimed and str(row).endswith("binary") for row in binary_table(model))
    assert len(binary_table(kb.deploy.freeze(model))) == 14
    with_full_precision_kernels = kb.training.two_stage.with_full_precision_kernels(model)
    assert not any(row.binary or row.claimed for row in binary_table(with_full_precision_kernels))


@pytest.mark.parametrize("name", ["ste_sign", "approx_sign", "swish_sign"])
def test_our_signs(name):
    assert is_sign(kb.quantizers.get(name))


@pytest.mark.parametrize(
    "function, expected",
    [
        (lambda x: ops.where(x < 0, -1.0, 1.0), True),
        (lambda x: ops.sign(ops.sign(x) + 0.1), True),
        (lambda x: ops.where(x > 0, 1.0, -1.0), False),
        (lambda x: ops.where(x >= 1e-8, 1.0, -1.0), False),
        (lambda x: ops.where(x >= ops.mean(x), 1.0, -1.0), False),
        (lambda x: 2 * ops.where(x >= 0, 1.0, -1.0), False),
        (lambda x: ops.reshape(x, (2, 2)), False),
        (kb.quantizers.get("ste_heaviside"), False),
        (None, False),
    ],
    ids=["below 0", "Larq's", "0 is -1", "other threshold", "of the mean", "times 2", "other shape", "0 and 1", "none"],
)
def test_signs(function, expected):
    assert is_sign(function) is expected


def test_a_unit_of_zeros_is_binary():
    """Its scale is 0, and its signs don't matter."""
    model = functional((4, 4, 32), kb.layers.QuantConv2D(8, 3, input_quantizer="ste_sign", kernel_quantizer=zero_first))
    assert binary_table(model)[0].binary
    assert_same(kb.deploy.freeze(model), model, images(model))


def zero_first(kernel):
    return ops.where(kernel >= 0, 1.0, -1.0) * np.float32([0] + [1] * 7)


def test_summary_counts_the_bits_of_the_file():
    options = [BINARY, {"kernel_quantizer": "ste_sign"}, {**BINARY, "input_quantizer": "ste_heaviside"}]
    model = functional((4, 4, 32), lambda x: [kb.layers.QuantConv2D(8, 3, use_bias=False, **o)(x) for o in options])
    profile = kb.profile.summary(model, print_fn=lambda text: None)
    kernel = 3 * 3 * 32 * 8
    assert profile.parameters == {1: kernel, 32: 2 * kernel} and profile.macs == {1: 4 * kernel, 32: 8 * kernel}
