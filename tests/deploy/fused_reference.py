"""The fused operators once more, in NumPy and on their packed operands, as docs/operators.md says.

float32 throughout: NumPy rounds each operation, and sums are written in the page's order.
"""

import numpy as np


def unpacked(words, length):
    """Returns as booleans the first `length` bits of each row of int32 words."""
    shifts = np.arange(32, dtype=np.uint32)
    bits = (words.view(np.uint32)[..., None] >> shifts) & 1
    return bits.reshape(*words.shape[:-1], -1)[..., :length].astype(bool)


def differ(values, kernel):
    """Returns in how many of its signs each row of `values` differs from each row of bits of `kernel`."""
    count = sum((values[..., None, i] < 0) ^ kernel[:, i] for i in range(kernel.shape[1]))
    return count.astype(np.float32)


def prelu(x, slope):
    return np.where(x >= 0, x, slope * x)


def feed_forward(x, kernel_1, hidden, kernel_2, parameters, residual=None):
    multiplier_1, bias_1, slope_1, threshold_2 = hidden
    scale, threshold_1, multiplier_2, bias_2, slope_2, output_scale, output_shift = parameters
    channels, units = x.shape[-1], hidden.shape[1]
    expansion = units // channels
    s = x * scale
    copies = s[..., np.arange(units) % channels]
    u = prelu(differ(s + threshold_1, unpacked(kernel_1, channels)) * multiplier_1 + bias_1 + copies, slope_1)
    m = u[..., ::expansion]
    for i in range(1, expansion):
        m = m + u[..., i::expansion]
    m = m * np.float32(1 / expansion)
    v = prelu(differ(u + threshold_2, unpacked(kernel_2, units)) * multiplier_2 + bias_2 + m, slope_2)
    output = v * output_scale + output_shift
    return output if residual is None else output + residual


def attention(x, kernels, parameters, probability_threshold, heads, reduction, residual):
    batch, height, width, channels = x.shape
    bits = unpacked(kernels, channels)
    scale = parameters[0]
    rows = dict(zip(("query", "key", "value", "output"), parameters[1:17].reshape(4, 4, -1), strict=True))
    query_threshold, key_threshold, value_threshold = parameters[17:20]
    context_scale, context_bias, context_slope, output_scale, output_shift = parameters[20:25]
    rows["reduced"] = parameters[25:]

    def project(z, name):
        threshold, multiplier, bias, slope = rows[name]
        kernel = bits[list(rows).index(name)]
        return prelu(differ(z + threshold, kernel) * multiplier + bias + z, slope)

    s = x * scale
    g = s
    if reduction > 1:
        g = np.empty((batch, height // reduction, width // reduction, channels), np.float32)
        for i, j in np.ndindex(g.shape[1:3]):
            rows_of_square = []
            for a in range(reduction):
                row = s[:, reduction * i + a, reduction * j]
                for b in range(1, reduction):
                    row = row + s[:, reduction * i + a, reduction * j + b]
                rows_of_square.append(row)
            total = rows_of_square[0]
            for row in rows_of_square[1:]:
                total = total + row
            g[:, i, j] = total * np.float32(1 / reduction**2)
        g = project(g, "reduced")
    q, k, v = project(s, "query"), project(g, "key"), project(g, "value")
    signs = [np.where(z + t < 0, -1, 1) for z, t in ((q, query_threshold), (k, key_threshold), (v, value_threshold))]
    qb, kb, vb = (z.reshape(batch, -1, channels) for z in signs)
    o = np.empty(qb.shape, np.float32)
    size = channels // heads
    for image, head in np.ndindex(batch, heads):
        part = (image, slice(None), slice(head * size, (head + 1) * size))
        scores = np.exp((qb[part] @ kb[part].T) / np.sqrt(np.float64(size)))
        p = scores / scores.sum(1, keepdims=True)
        o[part] = (p > probability_threshold[0]).astype(int) @ vb[part]
    up = np.repeat(np.repeat(k + v, reduction, 1), reduction, 2)
    t = prelu(o.reshape(x.shape) * context_scale + context_bias + q + up, context_slope)
    output = project(t, "output") * output_scale + output_shift
    return output + x if residual else output


def pooling(x, parameters, vertical, residual):
    scale, shift, bias, center = parameters[:4]
    below, beside = parameters[4 : 4 + vertical], parameters[4 + vertical :]
    _, height, width, _ = x.shape
    output = np.empty_like(x)
    for i, j in np.ndindex(height, width):
        value = x[:, i, j] * (center * scale)
        row = np.float64(center)
        column = np.zeros(len(center))
        for d, weight in enumerate(below, 1):
            inside = [x[:, k, j] for k in (i - d, i + d) if 0 <= k < height]
            if inside:
                value = value + sum(inside[1:], inside[0]) * (weight * scale)
            row = row + len(inside) * np.float64(weight)
        for d, weight in enumerate(beside, 1):
            inside = [x[:, i, k] for k in (j - d, j + d) if 0 <= k < width]
            if inside:
                value = value + sum(inside[1:], inside[0]) * (weight * scale)
            column = column + len(inside) * np.float64(weight)
        edge = (bias + shift * row).astype(np.float32) + (shift * column).astype(np.float32)
        output[:, i, j] = value + edge + x[:, i, j] if residual else value + edge
    return output


def patch_merging(x, kernel, parameters, outputs):
    (scale, threshold), (multiplier, bias, slope) = parameters, outputs
    channels, units = x.shape[-1], len(bias)
    taps = np.split(kernel, 4, axis=1)
    s = x * scale
    corners = [s[:, a::2, b::2] for a in (0, 1) for b in (0, 1)]
    count = sum(differ(z + threshold, unpacked(tap, channels)) for z, tap in zip(corners, taps, strict=True))
    m = ((corners[0] + corners[1]) + (corners[2] + corners[3])) * np.float32(0.25)
    return prelu(count * multiplier + bias + m[..., np.arange(units) % channels], slope)
