"""Larq's side of tests/test_larq.py, in a process of its own: Larq needs Keras 2.

Writes Larq's public names and a small QuickNet, its weights, images and logits, into the folder on the command line.
"""

import inspect
import json
import sys
from pathlib import Path

import numpy as np

IMAGE_SHAPE = (32, 32, 3)


def public_names(larq):
    """Returns what the modules that `larq` exports define, as a program with `import larq as lq` writes it."""
    return sorted(
        f"lq.{module}.{name}"
        for module in larq.__all__
        for name, value in vars(getattr(larq, module)).items()
        if not name.startswith("_") and callable(value)
        if getattr(inspect.unwrap(value), "__module__", "").startswith("larq.")
    )


def quicknet(larq, keras):
    """Returns a QuickNet with one block before and one after a transition."""
    layers = keras.layers

    def norm(x):
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    def block(x):
        convolution = larq.layers.QuantConv2D(
            x.shape[-1],
            3,
            padding="same",
            pad_values=1.0,
            use_bias=False,
            activation="relu",
            input_quantizer="ste_sign",
            kernel_quantizer="ste_sign",
            kernel_constraint="weight_clip",
        )
        return layers.add([x, norm(convolution(x))])

    inputs = layers.Input(IMAGE_SHAPE)
    x = norm(layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(inputs))
    x = layers.Activation("relu")(x)
    x = norm(larq.layers.QuantDepthwiseConv2D(3, strides=2, padding="same", use_bias=False)(x))
    x = norm(layers.Conv2D(32, 1, use_bias=False)(x))
    x = block(x)
    x = layers.MaxPool2D(3, strides=1, padding="same")(layers.Activation("relu")(x))
    x = larq.layers.QuantDepthwiseConv2D(3, strides=2, padding="same", use_bias=False)(x)
    x = norm(layers.Conv2D(64, 1, use_bias=False)(x))
    x = block(x)
    x = layers.GlobalAveragePooling2D()(layers.Activation("relu")(x))
    return keras.Model(inputs, layers.Dense(10)(x))


def set_weights(model):
    """Sets weights whose products and sums float32 holds exactly, in any order."""
    rng = np.random.default_rng(0)
    # Odd multiples of 2^-n, finer than the values that they are added to: no sum is 0, where a sign jumps.
    exponents = iter((3, 4, 6, 5, 9, 5))
    factor = 1.0
    for layer in model.layers:
        shapes = [weight.shape for weight in layer.get_weights()]
        if layer.__class__.__name__ == "BatchNormalization":
            shift = (2 * rng.integers(-8, 8, shapes[0]) + 1) / 2 ** next(exponents)
            layer.set_weights([np.full(shapes[0], factor), shift, np.zeros(shapes[0]), np.full(shapes[0], 1 - 1e-5)])
            factor = 1.0
        elif layer.__class__.__name__ == "QuantConv2D":
            layer.set_weights([rng.uniform(-1, 1, shape) for shape in shapes])
            factor = 1 / 32
        elif shapes:
            layer.set_weights([rng.choice([-0.5, 0, 0.5], shape) for shape in shapes])


def main():
    import larq
    import tensorflow as tf

    folder = Path(sys.argv[1])
    (folder / "names.json").write_text(json.dumps(public_names(larq)))
    model = quicknet(larq, tf.keras)
    set_weights(model)
    model.save_weights(folder / "quicknet.h5")
    model.save(folder / "whole.h5")
    images = np.random.default_rng(1).integers(-8, 9, (16, *IMAGE_SHAPE)).astype("float32") / 4
    np.savez(folder / "quicknet.npz", images=images, logits=model(images, training=False))


if __name__ == "__main__":
    main()
