"""What every layer must do (`check_layer`), and the layers' mathematics once more in NumPy and float64."""

import inspect
import tempfile
from pathlib import Path

import keras
import numpy as np
from hypothesis import Phase, settings
from keras import ops

import keras_binaryvit as kb

# An example takes a second: few of them, always the same, and none spent on shrinking.
few_examples = settings(max_examples=2, deadline=None, derandomize=True, database=None, phases=[Phase.generate])

# Share of the largest magnitude by which a result in half precision may differ.
HALF_PRECISION = {"float16": 5e-3, "bfloat16": 5e-2}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def float64(tensor):
    return numpy(tensor).astype("float64")


def assert_close(actual, expected, share=1e-5):
    """Compares shapes, and values within `share` of the largest expected magnitude."""
    assert actual.shape == expected.shape
    atol = share * np.abs(expected).max(initial=1e-3)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def randomize(layer, seed=1):
    """Gives a built layer weights of which none is neutral."""
    random = np.random.default_rng(seed)
    for weight in layer.weights:
        if "seed" in weight.name:
            continue
        positive = weight.name in ("gamma", "moving_variance")
        value = random.uniform(0.5, 1.5, weight.shape) if positive else random.normal(0, 0.5, weight.shape)
        weight.assign(np.full((), 0.03) if weight.name == "clip" else value)
    return layer


def check_layer(layer, shape, signs=False):
    """Checks what Keras promises of any layer, with inputs of `shape`. `signs`: rounding may flip some inside."""
    x = normal(*shape, seed=7)
    layer.build(shape)
    randomize(layer)
    expected = numpy(layer(x))
    assert expected.dtype == layer.compute_dtype == "float32"
    assert tuple(layer.compute_output_shape(shape)) == expected.shape
    assert tuple(layer.compute_output_shape((None, *shape[1:]))) == (None, *expected.shape[1:])

    config = layer.get_config()
    assert set(inspect.signature(type(layer)).parameters) - {"args", "kwargs"} <= set(config)
    clone = type(layer).from_config(config)
    assert clone.get_config() == config
    serialized = keras.saving.serialize_keras_object(layer)
    assert keras.saving.deserialize_keras_object(serialized).get_config() == config

    inputs = keras.Input(shape[1:])
    functional = keras.Model(inputs, layer(inputs))
    assert functional.output_shape == (None, *expected.shape[1:])
    assert_close(numpy(functional(x)), expected)
    sequential = keras.Sequential([keras.Input(shape[1:]), clone])
    clone.set_weights(layer.get_weights())
    assert_close(numpy(sequential(x)), expected)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        functional.save(path)
        loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(functional(x)))
    assert [weight.path for weight in loaded.weights] == [weight.path for weight in functional.weights]

    weights = layer.get_weights()
    check_policies(lambda **dtype: type(layer).from_config({**config, "dtype": None, **dtype}), x, weights)
    if not signs:
        for half, share in HALF_PRECISION.items():
            mixed = type(layer).from_config({**config, "dtype": f"mixed_{half}"})
            mixed.build(shape)
            mixed.set_weights(weights)
            assert_close(numpy(ops.cast(mixed(x), "float32")), expected, share)


def check_policies(create, x, weights):
    """Checks dtypes under mixed policies, given as an argument and set for the whole session."""
    before = keras.config.dtype_policy()
    for half in HALF_PRECISION:
        policy = f"mixed_{half}"
        try:
            keras.config.set_dtype_policy(policy)
            by_session = create()
        finally:
            keras.config.set_dtype_policy(before)
        for layer in (by_session, create(dtype=policy)):
            layer.build(x.shape)
            layer.set_weights(weights)
            for sublayer in layer._flatten_layers():
                allowed = (policy, "float32") if sublayer.name == "binarizer" else (policy,)
                assert sublayer.dtype_policy.name in allowed, f"{sublayer.path}: {sublayer.dtype_policy.name}"
            assert {keras.backend.standardize_dtype(weight.dtype) for weight in layer.trainable_weights} <= {"float32"}
            for training in (False, True):
                outputs = layer(x, training=training) if layer._call_has_training_arg else layer(x)
                assert keras.backend.standardize_dtype(outputs.dtype) == half
                assert np.isfinite(numpy(ops.cast(outputs, "float32"))).all()


def numeric_gradients(function, *arrays, upstream, step=1e-6):
    """Returns the gradients of `sum(upstream * function(*arrays))` by central differences in float64."""
    arrays = [np.array(array, dtype="float64") for array in arrays]
    gradients = []
    for array in arrays:
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            value = array[index]
            array[index] = value + step
            above = np.sum(upstream * function(*arrays))
            array[index] = value - step
            below = np.sum(upstream * function(*arrays))
            array[index] = value
            gradient[index] = (above - below) / (2 * step)
        gradients.append(gradient)
    return gradients


# --- The layers in NumPy, at inference: a Keras layer's weights, other people's code ---


def np_sign(x):
    return np.where(x >= 0, 1.0, -1.0)


def np_norm(layer, x):
    deviation = np.sqrt(float64(layer.moving_variance) + 1e-5)
    return (x - float64(layer.moving_mean)) / deviation * float64(layer.gamma) + float64(layer.beta)


def np_rprelu(layer, x):
    shifted = x - float64(layer.input_shift)
    return np.maximum(shifted, 0) + float64(layer.slope) * np.minimum(shifted, 0) + float64(layer.output_shift)


def np_affine(layer, x):
    return float64(layer.scale) * x + float64(layer.shift)


def np_shortcut(x, units):
    channels = x.shape[-1]
    if units >= channels:
        return np.stack([x[..., j % channels] for j in range(units)], axis=-1)
    size = channels // units
    return np.stack([x[..., j * size : (j + 1) * size].mean(axis=-1) for j in range(units)], axis=-1)


def np_identity(x):
    return x


def np_projection(layer, x):
    kernel = float64(layer.dense.kernel)
    if layer.dense.kernel_quantizer is not None:
        kernel = np.abs(kernel).mean(axis=0) * np_sign(kernel - kernel.mean(axis=0))
    sign = np_identity if layer.dense.input_quantizer is None else np_sign
    product = sign(x + float64(layer.shift.shift)) @ kernel
    return np_rprelu(layer.activation, np_norm(layer.norm, product) + np_shortcut(x, kernel.shape[1]))


def np_feed_forward(layer, x):
    return np_projection(layer.reduce, np_projection(layer.expand, x))


def np_patches(x, side):
    """Returns `(batch, height / side, width / side, side, side, channels)`."""
    batch, height, width, channels = x.shape
    patches = x.reshape(batch, height // side, side, width // side, side, channels)
    return patches.transpose(0, 1, 3, 2, 4, 5)


def np_pooled(x, side):
    return np_patches(x, side).mean(axis=(3, 4))


def np_attention(layer, x):
    """Returns `(outputs, binarized probabilities)`, one head, query and key after the other."""
    batch, height, width, channels = x.shape
    r, heads = layer.reduction, layer.num_heads
    depth = channels // heads
    keys_from = np_projection(layer.reduced, np_pooled(x, r)) if r > 1 else x
    query, key, value = (
        np_projection(layer.query, x),
        np_projection(layer.key, keys_from),
        np_projection(layer.value, keys_from),
    )
    sign = np_identity if layer.input_quantizer is None else np_sign
    q, k, v = (
        sign(tensor + float64(shift.shift)).reshape(batch, -1, channels)
        for tensor, shift in ((query, layer.query_shift), (key, layer.key_shift), (value, layer.value_shift))
    )
    clip = float64(layer.binarizer.clip) if layer.binary_probabilities else None
    attention = np.zeros((batch, heads, q.shape[1], k.shape[1]))
    attended = np.zeros((batch, q.shape[1], channels))
    for sample in range(batch):
        for head in range(heads):
            group = slice(head * depth, (head + 1) * depth)
            scores = np.exp(q[sample, :, group] @ k[sample, :, group].T / np.sqrt(depth))
            probabilities = scores / scores.sum(axis=1, keepdims=True)
            attention[sample, head] = probabilities if clip is None else np.where(probabilities > clip / 2, clip, 0)
            attended[sample, :, group] = attention[sample, head] @ v[sample, :, group]
    context = np_norm(layer.context_norm, attended.reshape(x.shape)) + query
    for row in range(height):
        for column in range(width):
            context[:, row, column] += (key + value)[:, row // r, column // r]
    return np_projection(layer.output_projection, np_rprelu(layer.context_activation, context)), attention


def np_branches(layer, x):
    """Each mean by hand: what lies outside the map counts as 0."""
    _, rows, columns, _ = x.shape
    outputs = np.zeros_like(x)
    for (height, width), affine in zip(layer.windows, layer.affines, strict=True):
        pooled = np.zeros_like(x)
        for row in range(rows):
            for column in range(columns):
                top, left = max(row - height // 2, 0), max(column - width // 2, 0)
                window = x[:, top : row + height // 2 + 1, left : column + width // 2 + 1]
                pooled[:, row, column] = window.sum(axis=(1, 2)) / (height * width)
        outputs += np_affine(affine, pooled)
    return outputs


def np_block(layer, x, branches=True, affine=True):
    def scaled(sublayer, x):
        return np_affine(sublayer, x) if affine else x

    x = x + scaled(layer.attention_affine, np_attention(layer.attention, np_norm(layer.attention_norm, x))[0])
    h = np_norm(layer.feed_forward_norm, x)
    x = x + scaled(layer.feed_forward_affine, np_feed_forward(layer.feed_forward, h))
    return x + np_branches(layer.branches, h) if branches else x


def flat_vit(image_shape, num_classes, patch_size, embed_dim, depth, num_heads, mlp_ratio=4, **arguments):
    """Returns a `BinaryViT` with one stage."""
    stages = {"embed_dims": (embed_dim,), "depths": (depth,), "num_heads": (num_heads,)}
    stages |= {"sr_ratios": (1,), "mlp_ratios": (mlp_ratio,), "use_patch_norm": False}
    return kb.BinaryViT(image_shape, num_classes, patch_size, **stages, **arguments)
