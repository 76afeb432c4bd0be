"""Every kernel set against the scalar one, and that against NumPy, over shapes with ragged edges."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import Tensor, options, pack, run, single_op

shapes = {
    "positions": st.integers(1, 150),
    "channels": st.sampled_from([1, 31, 32, 33, 64, 96, 100, 512]) | st.integers(1, 1200),
    "units": st.sampled_from([1, 15, 16, 17, 32, 33, 64]) | st.integers(1, 200),
    "activation": st.sampled_from([0, 1, 3]),
    "seed": st.integers(0, 2**32 - 1),
}


def product(positions, channels, units, activation, seed):
    """Returns a 1x1 convolution, its packed input, and what it is made of."""
    rng = np.random.default_rng(seed)
    x, kernel = (rng.choice(np.array([-1, 1], np.int8), (n, channels)) for n in (positions, units))
    multiplier, bias = rng.normal(size=(2, units)).astype(np.float32)
    packed = pack(x)[None, None]
    inputs = [
        Tensor(packed.shape, "int32"),
        Tensor((units, 1, 1, packed.shape[-1]), "int32", pack(kernel)),
        Tensor((units,), "float32", multiplier),
        Tensor((units,), "float32", bias),
        None,
    ]
    custom_options = options(
        stride_height=1,
        stride_width=1,
        dilation_height_factor=1,
        dilation_width_factor=1,
        padding=1,
        pad_values=0,
        channels_in=channels,
        fused_activation_function=activation,
    )
    flatbuffer = single_op("LceBconv2d", inputs, Tensor((1, 1, positions, units), "float32"), custom_options)
    return flatbuffer, packed, (x, kernel, multiplier, bias)


def in_scalar_code(flatbuffer, *inputs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BINARYVIT_KERNELS", "scalar")
        return run(flatbuffer, *inputs)


@settings(max_examples=60)
@given(**shapes)
@example(positions=3, channels=31 * 32 + 1, units=17, activation=0, seed=0)  # where sums of bytes would overflow
@example(positions=9, channels=31 * 32, units=16, activation=0, seed=0)
@example(positions=1, channels=1, units=1, activation=0, seed=0)
def test_products_equal_the_scalar_ones_bit_for_bit(positions, channels, units, activation, seed, kernels):
    flatbuffer, packed, _ = product(positions, channels, units, activation, seed)
    np.testing.assert_array_equal(run(flatbuffer, packed), in_scalar_code(flatbuffer, packed))


def test_a_row_that_differs_in_every_bit(kernels):
    """Nothing overflows, and no sum of bytes is lost."""
    channels = 4096
    custom_options = options(
        stride_height=1,
        stride_width=1,
        dilation_height_factor=1,
        dilation_width_factor=1,
        padding=1,
        pad_values=0,
        channels_in=channels,
        fused_activation_function=0,
    )
    x = np.zeros((1, 1, 5, channels // 32), np.int32)
    ones = np.ones(20, np.float32)
    inputs = [
        Tensor(x.shape, "int32"),
        Tensor((20, 1, 1, channels // 32), "int32", np.full((20, channels // 32), -1, np.int32)),
        Tensor((20,), "float32", ones),
        Tensor((20,), "float32", 0 * ones),
        None,
    ]
    flatbuffer = single_op("LceBconv2d", inputs, Tensor((1, 1, 5, 20), "float32"), custom_options)
    np.testing.assert_array_equal(run(flatbuffer, x), np.full((1, 1, 5, 20), -channels, np.float32))


@settings(max_examples=40)
@given(**shapes)
def test_scalar_products_equal_numpy(positions, channels, units, activation, seed):
    flatbuffer, packed, (x, kernel, multiplier, bias) = product(positions, channels, units, activation, seed)
    low, high = {0: (-np.inf, np.inf), 1: (0, np.inf), 3: (0, 6)}[activation]
    products = np.clip(x.astype(np.float64) @ kernel.T, low, high)
    expected = products * multiplier + bias
    scale = np.abs(products).max() + channels + 1  # the kernel adds the number of channels and takes it off again
    np.testing.assert_allclose(in_scalar_code(flatbuffer, packed)[0, 0], expected, atol=2e-6 * scale)


@settings(max_examples=40)
@given(rows=st.integers(1, 40), channels=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_signs_equal_numpy(rows, channels, seed, kernels):
    rng = np.random.default_rng(seed)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45]
    x = rng.normal(size=(1, rows, channels))
    x = np.where(rng.random(x.shape) < 0.3, rng.choice(special, x.shape), x).astype(np.float32)
    output = Tensor((1, rows, -(-channels // 32)), "int32")
    flatbuffer = single_op("LceQuantize", [Tensor(x.shape, "float32")], output)
    np.testing.assert_array_equal(run(flatbuffer, x), pack(x))


@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_threads_change_nothing(num_threads):
    for positions in 1, 8, 9, 130:
        flatbuffer, packed, _ = product(positions, 100, 50, 0, 0)
        np.testing.assert_array_equal(run(flatbuffer, packed, num_threads=num_threads), run(flatbuffer, packed))
