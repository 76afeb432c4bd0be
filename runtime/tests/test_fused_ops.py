"""The fused operators against NumPy, which computes what docs/operators.md says, over shapes with ragged edges."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import Tensor, options, pack, run, single_op

F = np.float32


def real(rng, *shape):
    return rng.normal(size=shape).astype(F)


def special(rng, x):
    """Puts NaNs of both signs, infinities and zeros of both signs among the values."""
    values = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0], F)
    return np.where(rng.random(x.shape) < 0.1, rng.choice(values, x.shape), x)


def use_small_slopes(rng, seed, *rows):
    """Of half of the cases all slopes are at most 1, for which some kernels have code of their own."""
    if seed % 2:
        for row in rows:
            row[:] = rng.uniform(-1, 1, row.shape)


def signs(rng, *shape):
    return rng.choice(np.array([-1, 1], np.int8), shape)


def differ(values, kernel):
    """Returns in how many signs the rows of `values` and `kernel` differ; a sign is that of its value."""
    bits = np.where(values < 0, -1, 1).astype(np.int64)
    return ((values.shape[-1] - bits @ kernel.T.astype(np.int64)) // 2).astype(F)


def scale_products(multiplier, bias, width):
    """Gives products of rows of `width` signs a mean of 0 and a deviation near 1, so that values have both signs."""
    multiplier *= 2 / width**0.5
    bias -= multiplier * F(width / 2)


def prelu(values, slope):
    return np.where(values >= 0, values, slope * values).astype(F)


def project(x, kernel, threshold, multiplier, bias, slope):
    return prelu(differ(x + threshold, kernel) * multiplier + bias + x, slope)


def single(name, inputs, outputs_shape, **attributes):
    """Returns a flatbuffer of one operator: its first input and `None`s are computed, the others constants."""
    tensors = [
        Tensor(value.shape, "int32" if value.dtype == np.int32 else "float32", None if computed else value)
        for value, computed in inputs
    ]
    return single_op(name, tensors, Tensor(outputs_shape, "float32"), options(**attributes))


# Each of these returns a flatbuffer, its computed inputs and the expected output.


def feed_forward(seed, shape, expansion, residual, inputs_of=None):
    rng = np.random.default_rng(seed)
    *_, channels = shape
    hidden = channels * expansion
    x, z = real(rng, *shape), real(rng, *shape)
    x = inputs_of(rng, x) if inputs_of else x
    kernel_1, kernel_2 = signs(rng, hidden, channels), signs(rng, channels, hidden)
    table_1, table_2 = real(rng, 4, hidden), real(rng, 7, channels)
    use_small_slopes(rng, seed, table_1[2], table_2[4])
    scale_products(*table_1[:2], channels)
    scale_products(*table_2[2:4], hidden)
    rows = [x, pack(kernel_1), table_1, pack(kernel_2), table_2] + [z] * residual
    inputs = [(value, index in (0, 5)) for index, value in enumerate(rows)]

    scale, threshold_1, multiplier_2, bias_2, slope_2, output_scale, output_shift = table_2
    multiplier_1, bias_1, slope_1, threshold_2 = table_1
    s = x.reshape(-1, channels) * scale
    u = differ(s + threshold_1, kernel_1) * multiplier_1 + bias_1 + s[:, np.arange(hidden) % channels]
    u = prelu(u, slope_1)
    groups = u.reshape(-1, channels, expansion)
    mean = groups[..., 0]
    for e in range(1, expansion):
        mean = mean + groups[..., e]
    mean = mean * F(F(1) / F(expansion))
    v = prelu(differ(u + threshold_2, kernel_2) * multiplier_2 + bias_2 + mean, slope_2)
    expected = (v * output_scale + output_shift).reshape(shape)
    expected = expected + z if residual else expected
    flatbuffer = single("BinaryVitFeedForward", inputs, shape, residual=int(residual))
    return flatbuffer, [x] + [z] * residual, expected


def attention(seed, batch, squares, reduction, heads, head_dim, residual, close=None, inputs_of=None):
    """`close`, -1 or 1, puts the threshold one float32 below or above a probability of the first head."""
    rng = np.random.default_rng(seed)
    height, width, channels = squares[0] * reduction, squares[1] * reduction, heads * head_dim
    shape = (batch, height, width, channels)
    count = 5 if reduction > 1 else 4
    x, kernels = real(rng, *shape), signs(rng, count, channels, channels)
    x = inputs_of(rng, x) if inputs_of else x
    table = real(rng, 29 if reduction > 1 else 25, channels)
    use_small_slopes(rng, seed, *(table[row] for row in (4, 8, 12, 16, 22)), *table[28:])
    for row in (2, 6, 10, 14, 26)[:count]:
        scale_products(table[row], table[row + 1], channels)
    keys_count = squares[0] * squares[1]
    table[20] *= 1 / keys_count**0.5
    threshold = np.array([1.03 / keys_count], F)

    def constants(kernel):
        first = 25 if kernel == 4 else 1 + 4 * kernel
        return kernels[kernel], *table[first : first + 4]

    expected = np.empty(shape, F)
    for image in range(batch):
        s = x[image] * table[0]
        g = s.reshape(-1, channels)
        if reduction > 1:
            blocks = s.reshape(squares[0], reduction, squares[1], reduction, channels)
            total = None
            for y in range(reduction):
                row = blocks[:, y, :, 0]
                for i in range(1, reduction):
                    row = row + blocks[:, y, :, i]
                total = row if total is None else total + row
            g = total.reshape(-1, channels) * F(F(1) / F(reduction**2))
            g = project(g, *constants(4))
        q = project(s.reshape(-1, channels), *constants(0))
        k, v = project(g, *constants(1)), project(g, *constants(2))
        qb, kb, vb = (np.where(a + t < 0, -1, 1) for a, t in zip((q, k, v), table[17:20], strict=True))
        o = np.empty((height * width, channels), F)
        for head in range(heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            scores = (qb[:, part] @ kb[:, part].T) / np.sqrt(np.float64(head_dim))
            p = np.exp(scores - scores.max(-1, keepdims=True))
            p = p / p.sum(-1, keepdims=True)
            if close and image == head == 0:
                threshold[0] = np.nextafter(F(np.sort(p, None)[p.size // 2]), F(np.inf * close))
            o[:, part] = (p > threshold).astype(np.int64) @ vb[:, part]
        positions = np.arange(height * width)
        key = positions // width // reduction * squares[1] + positions % width // reduction
        t = prelu(o * table[20] + table[21] + q + (k + v)[key], table[22])
        y = project(t, *constants(3)) * table[23] + table[24]
        expected[image] = y.reshape(shape[1:])
    inputs = [(x, True), (pack(kernels), False), (table, False), (threshold, False)]
    flatbuffer = single("BinaryVitAttention", inputs, shape, heads=heads, reduction=reduction, residual=int(residual))
    return flatbuffer, [x], expected + x if residual else expected


def pooling(seed, shape, vertical, horizontal, residual, inputs_of=None):
    rng = np.random.default_rng(seed)
    _, height, width, channels = shape
    x, table = real(rng, *shape), real(rng, 4 + vertical + horizontal, channels)
    x = inputs_of(rng, x) if inputs_of else x
    scale, shift, bias, center = table[:4]
    below, beside = table[4 : 4 + vertical], table[4 + vertical :]

    def neighbors(distance, axis):
        """Returns the sums of both neighbors, and how many are inside."""
        size = x.shape[axis]
        total, inside = np.zeros_like(x), np.zeros(size)
        source, target = [slice(None)] * 4, [slice(None)] * 4
        for a, b in ((slice(distance, None), slice(0, -distance)), (slice(0, -distance), slice(distance, None))):
            if distance < size:
                source[axis], target[axis] = a, b
                total[tuple(target)] += x[tuple(source)]
                inside[b] += 1
        return total, inside

    expected = x * (center * scale)
    rows = np.broadcast_to(center.astype(np.float64), (height, channels))
    columns = np.zeros((width, channels))
    for d, weight in enumerate(below, 1):
        total, inside = neighbors(d, 1)
        expected = expected + total * (weight * scale)
        rows = rows + inside[:, None] * weight
    for d, weight in enumerate(beside, 1):
        total, inside = neighbors(d, 2)
        expected = expected + total * (weight * scale)
        columns = columns + inside[:, None] * weight
    edge = (rows * shift + bias).astype(F)[:, None] + (columns * shift).astype(F)
    expected = expected + edge
    inputs = [(x, True), (table, False)]
    flatbuffer = single("BinaryVitPooling", inputs, shape, vertical=vertical, residual=int(residual))
    return flatbuffer, [x], expected + x if residual else expected


def patch_merging(seed, batch, height, width, channels, copies, inputs_of=None):
    rng = np.random.default_rng(seed)
    units = channels * copies
    x = real(rng, batch, 2 * height, 2 * width, channels)
    x = inputs_of(rng, x) if inputs_of else x
    kernel, table, outputs = signs(rng, units, 4, channels), real(rng, 2, channels), real(rng, 3, units)
    use_small_slopes(rng, seed, outputs[2])
    scale_products(*outputs[:2], 4 * channels)
    inputs = [(x, True), (pack(kernel).reshape(units, -1), False), (table, False), (outputs, False)]
    shape = (batch, height, width, units)
    flatbuffer = single("BinaryVitPatchMerging", inputs, shape)

    s = x * table[0]
    taps = [s[:, y::2, i::2] for y in (0, 1) for i in (0, 1)]
    values = np.concatenate([tap + table[1] for tap in taps], axis=-1)
    mean = ((taps[0] + taps[1]) + (taps[2] + taps[3])) * F(0.25)
    u = differ(values, kernel.reshape(units, -1)) * outputs[0] + outputs[1] + np.tile(mean, copies)
    return flatbuffer, [x], prelu(u, outputs[2])


def check(case):
    flatbuffer, inputs, expected = case
    np.testing.assert_array_equal(run(flatbuffer, *inputs), expected)


seeds = st.integers(0, 2**32 - 1)
leading = st.lists(st.integers(1, 5), min_size=1, max_size=3)
some_channels = st.sampled_from([1, 3, 16, 20, 31, 32, 33, 48, 64, 96]) | st.integers(1, 70)


@settings(max_examples=40)
@given(
    seed=seeds,
    leading=leading,
    channels=some_channels,
    expansion=st.sampled_from([1, 2, 3, 4, 8]) | st.integers(1, 40),
    residual=st.booleans(),
)
@example(seed=0, leading=[3, 3, 9], channels=64, expansion=8, residual=True)
@example(seed=0, leading=[17], channels=256, expansion=4, residual=True)
@example(seed=0, leading=[15], channels=128, expansion=8, residual=True)
@example(seed=0, leading=[9], channels=512, expansion=4, residual=False)
@example(seed=0, leading=[2], channels=32, expansion=33, residual=False)
def test_feed_forward(seed, leading, channels, expansion, residual, kernels):
    check(feed_forward(seed, (*leading, channels), expansion, residual))


@settings(max_examples=40)
@given(
    seed=seeds,
    batch=st.integers(1, 2),
    squares=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    reduction=st.integers(1, 4),
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([1, 5, 16, 31, 32, 33, 64, 100, 128]),
    residual=st.booleans(),
)
@example(seed=0, batch=1, squares=(7, 7), reduction=8, heads=1, head_dim=64, residual=True)
@example(seed=0, batch=2, squares=(7, 9), reduction=1, heads=2, head_dim=64, residual=True)
@example(seed=0, batch=1, squares=(14, 14), reduction=1, heads=4, head_dim=64, residual=True)
@example(seed=0, batch=1, squares=(12, 11), reduction=1, heads=1, head_dim=96, residual=False)
@example(seed=0, batch=1, squares=(3, 5), reduction=1, heads=8, head_dim=64, residual=False)
def test_attention(seed, batch, squares, reduction, heads, head_dim, residual, kernels):
    check(attention(seed, batch, squares, reduction, heads, head_dim, residual))


@pytest.mark.parametrize("close", [-1, 1])
@pytest.mark.parametrize("head_dim", [16, 64, 114, 115, 255, 257])
def test_probabilities_next_to_the_threshold(head_dim, close, kernels):
    """Exponentials of 16 bits can't tell on which side they are."""
    for seed in range(5):
        check(attention(seed, 1, (7, 7), 1, 1, head_dim, False, close))


def test_more_keys_than_an_int32_sum_of_exponentials_takes():
    """Equal positions have equal probabilities, all below the threshold, so that a map's size changes nothing."""
    rng = np.random.default_rng(0)
    x, kernels, table = real(rng, 32), signs(rng, 4, 32, 32), real(rng, 25, 32)
    rows = []
    for side in (2, 182):
        image = np.tile(x, (1, side, side, 1))
        inputs = [(image, True), (pack(kernels), False), (table, False), (np.array([0.5], F), False)]
        flatbuffer = single("BinaryVitAttention", inputs, image.shape, heads=1, reduction=1, residual=0)
        rows.append(run(flatbuffer, image).reshape(-1, 32))
    np.testing.assert_array_equal(rows[1], np.broadcast_to(rows[0][0], rows[1].shape))


@settings(max_examples=40)
@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 2), st.integers(1, 8), st.integers(1, 8), some_channels),
    vertical=st.integers(0, 4),
    horizontal=st.integers(0, 4),
    residual=st.booleans(),
)
@example(seed=0, shape=(1, 9, 7, 64), vertical=2, horizontal=2, residual=True)
@example(seed=0, shape=(1, 1, 1, 33), vertical=2, horizontal=2, residual=False)
@example(seed=0, shape=(2, 6, 6, 35), vertical=3, horizontal=3, residual=True)
def test_pooling(seed, shape, vertical, horizontal, residual, kernels):
    check(pooling(seed, shape, vertical, horizontal, residual))


@settings(max_examples=30)
@given(
    seed=seeds,
    batch=st.integers(1, 2),
    height=st.integers(1, 4),
    width=st.integers(1, 5),
    channels=some_channels,
    copies=st.integers(1, 4),
)
@example(seed=0, batch=1, height=3, width=3, channels=64, copies=2)
def test_patch_merging(seed, batch, height, width, channels, copies, kernels):
    check(patch_merging(seed, batch, height, width, channels, copies))


@pytest.mark.parametrize("num_threads", [2, 3])
def test_threads_change_nothing(num_threads):
    cases = [
        feed_forward(1, (50, 64), 4, True),
        attention(2, 1, (4, 5), 2, 2, 32, True),
        pooling(3, (1, 7, 7, 32), 2, 2, True),
        patch_merging(4, 2, 5, 5, 32, 2),
    ]
    for flatbuffer, inputs, expected in cases:
        np.testing.assert_array_equal(run(flatbuffer, *inputs, num_threads=num_threads), expected)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("channels", [64, 50])
def test_numbers_that_are_none(channels, kernels):
    """The bit of a NaN, of either sign, and of -0.0 is 0 on every processor."""
    check(feed_forward(0, (3, 5, channels), 4, True, special))
    check(feed_forward(1, (9, channels), 1, False, special))
    check(attention(0, 1, (3, 5), 1, 2, channels, True, inputs_of=special))
    check(attention(1, 1, (3, 2), 2, 1, channels, False, inputs_of=special))
    check(pooling(0, (1, 6, 6, channels), 2, 2, True, special))
    check(patch_merging(0, 1, 2, 3, channels, 2, special))
    x = special(np.random.default_rng(0), np.zeros((1, 4, 5, channels), F))
    words = Tensor((1, 4, 5, -(-channels // 32)), "int32")
    check((single_op("LceQuantize", [Tensor(x.shape, "float32")], words), [x], pack(x)))
