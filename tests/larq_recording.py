"""What Larq 0.14 computes for the cases below, recorded by one process of its own.

Larq needs Keras 2 (`TF_USE_LEGACY_KERAS=1`), our tests Keras 3: they call `recording()`, which runs this file.
"""

import functools
import os
import subprocess
import sys
import tempfile

import numpy as np


def _rng(seed):
    return np.random.default_rng(seed)


def _grid():
    points = [0.0, 1e-30, 1e30, np.inf, 0.25, 0.5, 0.75, 1 / 6, 5 / 6, 0.05, 1.0, 2.0]
    points += [np.nextafter(np.float32(edge), np.float32(side)) for edge in (0.05, 0.5, 1) for side in (-9, 9)]
    points += list(_rng(0).normal(size=200))
    points = np.array(points, "float32")
    return np.concatenate([points, -points])


def _with_zeros(values):
    values = values.astype("float32")
    values.flat[::7] = 0
    return values


INPUTS = {
    "grid": _grid(),
    "matrix": _with_zeros(_rng(1).normal(size=(9, 5))),
    "maps": _with_zeros(_rng(2).normal(size=(3, 3, 4, 6)) * 0.7),
    "zeros": np.zeros((4, 3), "float32"),
}
UPSTREAM = {name: _rng(3).normal(size=x.shape).astype("float32") for name, x in INPUTS.items()}

# (class name, arguments)
_EVERYWHERE = [
    ("SteSign", {}),
    ("SteSign", {"clip_value": None}),
    ("SteSign", {"clip_value": 0.5}),
    ("ApproxSign", {}),
    ("SwishSign", {}),
    ("SwishSign", {"beta": 2.0}),
    ("SteHeaviside", {}),
    ("SteHeaviside", {"clip_value": None}),
    ("SteHeaviside", {"clip_value": 0.5}),
    ("SteTern", {}),
    ("SteTern", {"threshold_value": 0.5, "clip_value": 0.5}),
    ("SteTern", {"clip_value": None}),
    ("DoReFa", {"k_bit": 1}),
    ("DoReFa", {}),
    ("DoReFa", {"k_bit": 3}),
    ("NoOp", {"precision": 1}),
]
_KERNELS = [  # they look at a whole tensor or unit, where infinity means nothing
    ("SteTern", {"ternary_weight_networks": True}),
    ("SteTern", {"ternary_weight_networks": True, "clip_value": None}),
    ("MagnitudeAwareSign", {}),
    ("MagnitudeAwareSign", {"clip_value": None}),
    ("MagnitudeAwareSign", {"clip_value": 0.5}),
    ("DoReFa", {"k_bit": 1, "mode": "weights"}),
    ("DoReFa", {"k_bit": 2, "mode": "weights"}),
    ("DoReFa", {"k_bit": 3, "mode": "weights"}),
]
QUANTIZERS = [(*case, name) for case in _EVERYWHERE for name in ("grid", "matrix", "maps")]
QUANTIZERS += [(*case, name) for case in _KERNELS for name in ("matrix", "maps", "zeros")]

_BINARY = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign"}
_DEPTHWISE = {"input_quantizer": "ste_sign", "depthwise_quantizer": "ste_sign"}
_SAME = {"filters": 4, "kernel_size": 3, "padding": "same", **_BINARY}
# (class name, arguments, input shape)
LAYERS = [
    ("QuantDense", {"units": 5, **_BINARY}, (3, 7)),
    ("QuantDense", {"units": 5, **_BINARY, "use_bias": False, "activation": "relu"}, (3, 7)),
    ("QuantDense", {"units": 5, "input_quantizer": "approx_sign", "kernel_quantizer": "magnitude_aware_sign"}, (3, 7)),
    ("QuantDense", {"units": 5, **_BINARY}, (2, 3, 4, 7)),
    ("QuantDense", {"units": 5, "input_quantizer": "dorefa_quantizer", "kernel_quantizer": "ste_tern"}, (2, 3, 4, 7)),
    ("QuantDense", {"units": 5, "kernel_quantizer": "swish_sign"}, (3, 7)),
    ("QuantDense", {"units": 5, "input_quantizer": "ste_heaviside"}, (3, 7)),
    ("QuantDense", {"units": 5}, (3, 7)),
    ("QuantConv2D", {"filters": 4, "kernel_size": 2, **_BINARY}, (2, 5, 6, 3)),
    ("QuantConv2D", {"filters": 4, "kernel_size": (2, 3), "strides": 2, **_BINARY}, (2, 7, 8, 3)),
    ("QuantConv2D", {"filters": 4, "kernel_size": 2, "dilation_rate": 2, **_BINARY}, (2, 7, 8, 3)),
    ("QuantConv2D", {"filters": 4, "kernel_size": 3, "groups": 2, **_BINARY}, (2, 5, 6, 4)),
    ("QuantConv2D", {**_SAME, "kernel_quantizer": "magnitude_aware_sign"}, (2, 5, 6, 3)),
    *[
        ("QuantConv2D", {**_SAME, "pad_values": pad, **more}, (2, 7, 8, 4))
        for pad in (0.0, 1.0, -1.0)
        for more in (
            {},
            {"strides": 2},
            {"strides": (3, 2), "kernel_size": (2, 4)},
            {"dilation_rate": 2},
            {"groups": 2},
        )
    ],
    ("QuantConv1D", {"filters": 4, "kernel_size": 3, "strides": 2, **_BINARY}, (2, 8, 3)),
    ("QuantConv1D", {"filters": 4, "kernel_size": 3, "dilation_rate": 2, "kernel_quantizer": "ste_tern"}, (2, 8, 3)),
    *[("QuantConv1D", {**_SAME, "pad_values": pad, "strides": 2}, (2, 8, 4)) for pad in (0.0, 1.0, -1.0)],
    ("QuantConv1D", {**_SAME, "padding": "causal"}, (2, 8, 3)),
    ("QuantConv1D", {**_SAME, "padding": "causal", "dilation_rate": 2, "use_bias": False}, (2, 8, 3)),
    ("QuantConv1D", {**_SAME, "padding": "causal", "strides": 2, "activation": "relu"}, (2, 8, 3)),
    ("QuantDepthwiseConv2D", {"kernel_size": (2, 3), **_DEPTHWISE}, (2, 5, 6, 3)),
    ("QuantDepthwiseConv2D", {"kernel_size": 3, "strides": 2, "depth_multiplier": 2, **_DEPTHWISE}, (2, 5, 6, 3)),
    *[
        ("QuantDepthwiseConv2D", {"kernel_size": 3, "padding": "same", "pad_values": pad, **_DEPTHWISE}, (2, 5, 6, 3))
        for pad in (0.0, 1.0)
    ],
    (
        "QuantDepthwiseConv2D",
        {"kernel_size": 3, "depth_multiplier": 2, "depthwise_quantizer": "magnitude_aware_sign"},
        (2, 5, 6, 3),
    ),
]

FLIPS = [_rng(seed).integers(-1, 2, size=(8, *shape)) for seed, shape in enumerate([(6,), (4, 5), (2, 3, 3, 2)])]


def layer_arrays(arguments, shape):
    """Returns the inputs, kernel and bias of a case of `LAYERS`."""
    rng = _rng(5)
    size = arguments.get("kernel_size", ())
    size = (size,) * (len(shape) - 2) if isinstance(size, int) else size
    units = arguments.get("units", arguments.get("filters"))
    last = units or arguments.get("depth_multiplier", 1)
    kernel = rng.normal(size=(*size, shape[-1] // arguments.get("groups", 1), last)) * 0.8
    units = units or last * shape[-1]
    x, bias = rng.normal(size=shape), rng.normal(size=units)
    return x.astype("float32"), kernel.astype("float32"), bias.astype("float32")


def layer_upstream(shape):
    """Returns the gradient of the loss to an output of `shape`."""
    return _rng(6).normal(size=shape).astype("float32")


@functools.cache
def recording():
    """Returns what `_record` computed, arrays by name; the tests that call it are marked `needs_larq`."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "larq.npz")
        run_python(__file__, path)
        with np.load(path) as arrays:
            return dict(arrays)


def run_python(*arguments, legacy=True):
    """Runs Python on the TensorFlow backend, with or without Larq's legacy flag, and returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    environment |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if legacy:
        environment["TF_USE_LEGACY_KERAS"] = "1"
    process = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


def _record(path):
    import larq
    import tensorflow as tf

    arrays = {}
    for index, (name, arguments, inputs) in enumerate(QUANTIZERS):
        x = tf.constant(INPUTS[inputs])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = getattr(larq.quantizers, name)(**arguments)(x)
        arrays[f"quantizer{index}"] = y
        arrays[f"quantizer{index}_gradient"] = tape.gradient(y, x, UPSTREAM[inputs])

    for index, (name, arguments, shape) in enumerate(LAYERS):
        x, kernel, bias = layer_arrays(arguments, shape)
        x = tf.constant(x)
        layer = getattr(larq.layers, name)(**arguments)
        layer.build(shape)
        layer.set_weights([kernel, bias] if layer.use_bias else [kernel])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        arrays[f"layer{index}"] = y
        if "groups" not in arguments:  # TensorFlow has no such gradient on a CPU
            gradients = tape.gradient(y, [x, layer.trainable_weights[0]], layer_upstream(y.shape))
            arrays[f"layer{index}_to_input"], arrays[f"layer{index}_to_kernel"] = gradients

    for index, sequence in enumerate(FLIPS):
        metric = larq.metrics.FlipRatio()
        results = []
        for values in sequence:
            metric.update_state(values)
            results.append(metric.result())
        arrays[f"flips{index}"] = results
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})


if __name__ == "__main__":
    _record(sys.argv[1])
