"""LCE's operators against LCE's own interpreter, over random shapes and attributes."""

import importlib.util

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import Tensor, options, pack, run, run_in_lce, single_op

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("larq_compute_engine"), reason="the Larq Compute Engine isn't installed"
)

SAME, VALID = 0, 1
NONE, RELU, RELU_N1_TO_1, RELU6 = range(4)

seeds = st.integers(0, 2**32 - 1)


def signs(rng, shape):
    return rng.choice(np.array([-1, 1], np.int8), shape)


@st.composite
def convolutions(draw):
    """Attributes of a convolution whose windows fit the map."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels = draw(st.integers(1, 3)) * 32 * groups if groups > 1 else draw(st.integers(1, 100))
    case = {
        "batch": draw(st.integers(1, 2)),
        "kernel": (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        "strides": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "dilations": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "padding": draw(st.sampled_from([SAME, VALID])),
        "pad_value": draw(st.integers(0, 1)),
        "channels": channels,
        "groups": groups,
        "units": draw(st.integers(1, 40)) * groups,
        "activation": draw(st.sampled_from([NONE, NONE, RELU, RELU_N1_TO_1, RELU6])),
        "output": draw(st.sampled_from(["float32", "int8", "int32"])),
        "seed": draw(seeds),
    }
    extent = [(k - 1) * d + 1 for k, d in zip(case["kernel"], case["dilations"], strict=True)]
    # LCE's correction for zeros around the map needs a map larger than the window.
    case["map"] = tuple(draw(st.integers(e + 1, e + 8)) for e in extent)
    return case


def bconv2d(case):
    """Returns the flatbuffer of a convolution and its input."""
    rng = np.random.default_rng(case["seed"])
    units, groups = case["units"], case["groups"]
    group_channels = case["channels"] // groups
    bits = case["kernel"][0] * case["kernel"][1] * group_channels
    x = pack(signs(rng, (case["batch"], *case["map"], case["channels"])))
    kernel = pack(signs(rng, (units, *case["kernel"], group_channels)))
    inputs = [Tensor(x.shape, "int32"), Tensor(kernel.shape, "int32", kernel), None, None, None]
    quantization = None
    depth = units
    if case["output"] == "int32":
        inputs[4] = Tensor((units,), "int32", rng.integers(-2, bits + 3, units, dtype=np.int32))
        depth = -(-units // 32)
    pads_zeros = case["padding"] == SAME and case["pad_value"] == 0
    if case["output"] != "int32" or pads_zeros:  # LCE reads the multiplier of padded zeros, needed or not
        inputs[2] = Tensor((units,), "float32", rng.normal(size=units).astype(np.float32))
        inputs[3] = Tensor((units,), "float32", rng.normal(size=units).astype(np.float32))
    if case["output"] == "int8":
        quantization = (float(np.float32(rng.uniform(0.05, 1))), int(rng.integers(-20, 20)))
    custom_options = options(
        stride_height=case["strides"][0],
        stride_width=case["strides"][1],
        dilation_height_factor=case["dilations"][0],
        dilation_width_factor=case["dilations"][1],
        padding=case["padding"],
        pad_values=case["pad_value"],
        channels_in=case["channels"],
        fused_activation_function=case["activation"],
    )
    sizes = []
    for size, kernel_size, stride, dilation in zip(
        case["map"], case["kernel"], case["strides"], case["dilations"], strict=True
    ):
        window = 1 if case["padding"] == SAME else (kernel_size - 1) * dilation + 1
        sizes.append((size - window) // stride + 1)
    output = Tensor((case["batch"], *sizes, depth), case["output"], quantization=quantization)
    return single_op("LceBconv2d", inputs, output, custom_options), x


@settings(max_examples=150)
@given(case=convolutions())
def test_convolutions_equal_lce_bit_for_bit(case, kernels):
    pads_zeros = case["padding"] == SAME and case["pad_value"] == 0
    # LCE has zeros around the map in its reference kernel alone, and there for an even number of channels.
    assume(not pads_zeros or case["channels"] // case["groups"] % 2 == 0)
    flatbuffer, x = bconv2d(case)
    kind = {"use_reference_bconv": True} if pads_zeros else {"use_indirect_bgemm": True}
    np.testing.assert_array_equal(run(flatbuffer, x), run_in_lce(flatbuffer, x, **kind))


@settings(max_examples=50)
@given(case=convolutions())
def test_zeros_around_the_map_equal_lce_optimized_kernel(case):
    """It adds a correction after the bias, so its rounding differs; it takes any number of channels."""
    case |= {"padding": SAME, "pad_value": 0, "activation": NONE, "output": "float32"}
    flatbuffer, x = bconv2d(case)
    actual, expected = run(flatbuffer, x), run_in_lce(flatbuffer, x, use_indirect_bgemm=True)
    bits = case["kernel"][0] * case["kernel"][1] * case["channels"]
    np.testing.assert_allclose(actual, expected, atol=1e-6 * bits)


def test_zeros_around_the_map_equal_numpy_for_odd_channels_with_an_activation():
    """No kernel of LCE does this."""
    rng = np.random.default_rng(0)
    x, kernel = signs(rng, (1, 5, 5, 3)), signs(rng, (7, 3, 3, 3))
    multiplier, bias = rng.normal(size=(2, 7)).astype(np.float32)
    padded = np.pad(x.astype(np.int32), [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    expected = np.clip(np.einsum("byxcij,uijc->byxu", windows, kernel), 0, 6) * multiplier + bias
    packed, weights = pack(x), pack(kernel)
    inputs = [
        Tensor(packed.shape, "int32"),
        Tensor(weights.shape, "int32", weights),
        Tensor((7,), "float32", multiplier),
        Tensor((7,), "float32", bias),
        None,
    ]
    strides = {"stride_height": 1, "stride_width": 1, "dilation_height_factor": 1, "dilation_width_factor": 1}
    rest = {"padding": SAME, "pad_values": 0, "channels_in": 3, "fused_activation_function": RELU6}
    flatbuffer = single_op("LceBconv2d", inputs, Tensor((1, 5, 5, 7), "float32"), options(**strides, **rest))
    np.testing.assert_allclose(run(flatbuffer, packed), expected, rtol=1e-5, atol=1e-5)


def test_thresholds_beyond_all_counts_and_multipliers_at_the_end_of_floats():
    rng = np.random.default_rng(0)
    x, kernel = pack(signs(rng, (1, 3, 3, 40))), pack(signs(rng, (4, 1, 1, 40)))
    strides = {"stride_height": 1, "stride_width": 1, "dilation_height_factor": 1, "dilation_width_factor": 1}
    custom_options = options(**strides, padding=VALID, pad_values=0, channels_in=40, fused_activation_function=NONE)
    thresholds = np.array([-(2**31), 2**31 - 1, 2**30, -1], np.int32)
    multiplier = np.array([3e38, -3e38, 1.2e-38, 1], np.float32)
    bias = np.array([0, 0, 0, 3e38], np.float32)
    inputs = [Tensor(x.shape, "int32"), Tensor(kernel.shape, "int32", kernel)]
    bits = single_op(
        "LceBconv2d",
        [*inputs, None, None, Tensor((4,), "int32", thresholds)],
        Tensor((1, 3, 3, 1), "int32"),
        custom_options,
    )
    floats = single_op(
        "LceBconv2d",
        [*inputs, Tensor((4,), "float32", multiplier), Tensor((4,), "float32", bias), None],
        Tensor((1, 3, 3, 4), "float32"),
        custom_options,
    )
    for flatbuffer in bits, floats:
        np.testing.assert_array_equal(run(flatbuffer, x), run_in_lce(flatbuffer, x))


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    channels=st.integers(1, 130),
    dtype=st.sampled_from(["float32", "int8", "bool"]),
    zero_point=st.integers(-128, 127),
    seed=seeds,
)
def test_quantize_equals_lce(shape, channels, dtype, zero_point, seed, kernels):
    rng = np.random.default_rng(seed)
    shape = (1, *shape, channels)
    if dtype == "float32":
        # No subnormals: LCE's interpreter takes them for zeros, this one doesn't.
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.2e-38, -1.2e-38]
        x = np.where(rng.random(shape) < 0.3, rng.choice(special, shape), rng.normal(size=shape)).astype(np.float32)
    elif dtype == "int8":
        x = rng.integers(-128, 128, shape, dtype=np.int8)
    else:
        x = rng.random(shape) < 0.5
    quantization = (0.5, zero_point) if dtype == "int8" else None
    output = Tensor((*shape[:-1], -(-channels // 32)), "int32")
    flatbuffer = single_op("LceQuantize", [Tensor(shape, dtype, quantization=quantization)], output)
    np.testing.assert_array_equal(run(flatbuffer, x), run_in_lce(flatbuffer, x))


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    channels=st.integers(1, 130),
    dtype=st.sampled_from(["float32", "int8", "bool"]),
    scale=st.floats(2**-7, 3, width=32),
    zero_point=st.integers(-128, 127),
    seed=seeds,
)
def test_dequantize_equals_lce(shape, channels, dtype, scale, zero_point, seed):
    shape = (1, *shape, channels)
    x = pack(signs(np.random.default_rng(seed), shape))
    output = Tensor(shape, dtype, quantization=(scale, zero_point) if dtype == "int8" else None)
    flatbuffer = single_op("LceDequantize", [Tensor(x.shape, "int32")], output)
    np.testing.assert_array_equal(run(flatbuffer, x), run_in_lce(flatbuffer, x))


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9), st.integers(1, 70)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from([SAME, VALID]),
    seed=seeds,
)
def test_max_pooling_equals_lce(size, window, strides, padding, seed):
    x = pack(signs(np.random.default_rng(seed), size))
    sides = [
        (side - (1 if padding == SAME else extent)) // stride + 1
        for side, extent, stride in zip(size[1:3], window, strides, strict=True)
    ]
    custom_options = options(
        filter_height=window[0],
        filter_width=window[1],
        stride_height=strides[0],
        stride_width=strides[1],
        padding=padding,
    )
    output = Tensor((size[0], *sides, x.shape[-1]), "int32")
    flatbuffer = single_op("LceBMaxPool2d", [Tensor(x.shape, "int32")], output, custom_options)
    np.testing.assert_array_equal(run(flatbuffer, x), run_in_lce(flatbuffer, x))
