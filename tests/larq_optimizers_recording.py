"""What Larq 0.14's optimizers do to the variables below, recorded by a process of its own (see larq_recording.py)."""

import functools
import os
import sys
import tempfile

import numpy as np

STEPS = 8
_PIECEWISE = {"boundaries": [2, 5], "values": [0.5, 0.1, 0.02]}
_DECAY = {"initial_learning_rate": 0.3, "decay_steps": 4, "decay_rate": 0.5}
# Arguments of Bop; a pair is a schedule, its class name and its arguments.
BOPS = [
    {"threshold": 1e-8, "gamma": 1e-4},
    {"threshold": 0.05, "gamma": 0.1},
    {"threshold": 0.0, "gamma": 1.0},
    {"threshold": 0.02, "gamma": ("PiecewiseConstantDecay", _PIECEWISE)},
    {"threshold": ("ExponentialDecay", _DECAY), "gamma": 0.2},
    {"threshold": ("PolynomialDecay", {"initial_learning_rate": 0.2, "decay_steps": 6}), "gamma": 0.3, "clipnorm": 0.5},
    {"threshold": 0.05, "gamma": 0.5, "clipvalue": 0.3},
]


def variables():
    """Returns the values that the variables start from: two binary kernels, latent values, zeros, and real ones."""
    rng = np.random.default_rng(0)
    kernels = [np.where(rng.random(shape) < 0.5, -1, 1) for shape in ((7, 5), (3, 3, 4, 6))]
    arrays = [*kernels, rng.uniform(-0.3, 0.3, (6, 4)), np.zeros(5), rng.normal(size=(4,))]
    return [array.astype("float32") for array in arrays]


def gradients():
    """Returns the gradients of each step: random, with zeros among them."""
    rng = np.random.default_rng(1)
    steps = [[rng.normal(size=v.shape) * (rng.random(v.shape) < 0.8) for v in variables()] for _ in range(STEPS)]
    return [[gradient.astype("float32") for gradient in step] for step in steps]


@functools.cache
def recording():
    """Returns the variables after each step, arrays by name; the tests that call it are marked `needs_larq`."""
    from larq_recording import run_python

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "larq.npz")
        run_python(__file__, path)
        with np.load(path) as arrays:
            return dict(arrays)


def _record(path):
    import larq
    import tensorflow as tf

    def argument(value):
        if isinstance(value, tuple):
            return getattr(tf.keras.optimizers.schedules, value[0])(**value[1])
        return value

    def run(optimizer, name, count):
        weights = [tf.Variable(value) for value in variables()[:count]]
        for step, grads in enumerate(gradients()):
            optimizer.apply_gradients(zip(grads[:count], weights, strict=True))
            for index, weight in enumerate(weights):
                arrays[f"{name}/{step}/{index}"] = weight.numpy()

    arrays: dict[str, np.ndarray] = {}
    for index, arguments in enumerate(BOPS):
        bop = larq.optimizers.Bop(**{key: argument(value) for key, value in arguments.items()})
        run(bop, f"bop{index}", 4)
    legacy = tf.keras.optimizers.legacy
    pairs = [
        (lambda variable: variable.shape.rank == 4, larq.optimizers.Bop(threshold=0.05, gamma=0.1)),
        (lambda variable: variable.shape[0] == 7, legacy.SGD(0.1, momentum=0.9)),
    ]
    run(larq.optimizers.CaseOptimizer(*pairs, default_optimizer=legacy.SGD(0.01)), "case", 5)
    np.savez(path, **arrays)


if __name__ == "__main__":
    _record(sys.argv[1])
