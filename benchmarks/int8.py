"""Prints what int8 for float layers does: `python benchmarks/int8.py --data-dir FOLDER_WITH_CIFAR10`.

The trained CIFAR-10 preset for both sets of operators, and two hybrids of binary and float convolutions, which are
trained for a few epochs first. All are converted with and without `float_layers="int8"`, with ranges from 100 training
images, and run over CIFAR-10's 10,000 test images in binaryvit-runtime, on one thread. Times are the fastest of single
images, the two files by turns.
"""

import argparse
import os
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

import keras_binaryvit as kb

BINARY = {
    **{"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign", "kernel_constraint": "weight_clip"},
    **{"use_bias": False, "padding": "same", "pad_values": 1.0},
}


def normalized(layer, x):
    """Returns the normalized outputs of a convolution."""
    return layers.BatchNormalization(momentum=0.9)(layer(x))


def pointwise(x, filters):
    """Returns a normalized float 1x1 convolution of `x`."""
    return normalized(layers.Conv2D(filters, 1, use_bias=False), x)


def depthwise(x, strides=1):
    """Returns a normalized float 3x3 depthwise convolution of `x`."""
    return normalized(layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False), x)


def quicknet_like(x):
    """Sections of binary 3x3 convolutions with shortcuts; float stem and transitions."""
    x = layers.ReLU()(normalized(layers.Conv2D(16, 3, padding="same", use_bias=False), x))
    x = pointwise(depthwise(x, 2), 64)
    for section, filters in enumerate((64, 128, 256)):
        if section:
            x = pointwise(depthwise(layers.MaxPooling2D(2, 1, padding="same")(layers.ReLU()(x)), 2), filters)
        for _ in range(2):
            binary = layers.ReLU()(kb.layers.QuantConv2D(filters, 3, **BINARY)(x))
            x = layers.Add()([x, layers.BatchNormalization(momentum=0.9)(binary)])
    return x


def mobilenet_like(x):
    """Float depthwise and binary 1x1 convolutions; float ones where the channels double."""
    x = layers.ReLU()(normalized(layers.Conv2D(32, 3, padding="same", use_bias=False), x))
    x = pointwise(x, 64)
    for filters, strides in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        if filters != x.shape[-1]:
            x = pointwise(layers.ReLU(6.0)(depthwise(x, strides)), filters)
        else:
            binary = normalized(kb.layers.QuantConv2D(filters, 1, **BINARY), depthwise(x))
            x = layers.Add()([x, binary])
    return x


def trained(network, epochs, data_dir):
    """Returns the classifier with the body `network` after a short training."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(network(inputs)))
    model = keras.Model(inputs, layers.Dense(10)(x))
    batches = kb.data.load("cifar10", "train[:8000]", batch_size=100, data_dir=data_dir)
    schedule = keras.optimizers.schedules.CosineDecay(4e-3, epochs * 80)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss)
    model.fit(batches, epochs=epochs, verbose=0)
    return model


def measure(name, model, ops, ranges, images, labels):
    """Prints the row of one model."""
    files = [
        kb.deploy.convert(model, ops),
        kb.deploy.convert(model, ops, float_layers="int8", representative_data=ranges),
    ]
    interpreters = [kb.deploy.interpreters.runtime_interpreter(file) for file in files]
    classes = [interpreter.predict(images).argmax(-1) for interpreter in interpreters]
    best = [np.inf, np.inf]
    for _ in range(300):
        for index, interpreter in enumerate(interpreters):
            start = time.perf_counter()
            interpreter.predict(images[:1])
            best[index] = min(best[index], time.perf_counter() - start)
    accuracies = " -> ".join(f"{100 * np.mean(predicted == labels):.2f}" for predicted in classes)
    milliseconds = " -> ".join(f"{1e3 * seconds:.3f}" for seconds in best)
    print(
        f"| {name} | {len(files[0]):,} -> {len(files[1]):,} | {accuracies} % | {np.mean(classes[0] == classes[1]):.1%} "
        f"| {milliseconds} |",
        flush=True,
    )


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="where TensorFlow Datasets has prepared CIFAR-10")
    parser.add_argument("--epochs", type=int, default=3, help="of the hybrids (%(default)s)")
    arguments = parser.parse_args()
    sets = [
        kb.data.load("cifar10", split, batch_size=250, shuffle=False, data_dir=arguments.data_dir)
        for split in ("train[:100]", "test")
    ]
    (ranges, _), (images, labels) = (
        [np.concatenate(arrays) for arrays in zip(*batches.as_numpy_iterator(), strict=True)] for batches in sets
    )
    print("| model | bytes, float32 -> int8 | top-1 | same class | ms |\n|---|---|---|---|---|")
    preset = "binaryvit_tiny_32_cifar10"
    for ops in ("lce", "fused"):
        measure(f'`{preset}`, `ops="{ops}"`', kb.BinaryViT.from_preset(preset), ops, ranges, images, labels)
    for name, network in {"QuickNet-like hybrid": quicknet_like, "MobileNet-like hybrid": mobilenet_like}.items():
        model = trained(network, arguments.epochs, arguments.data_dir)
        measure(name, model, "lce", ranges, images, labels)


if __name__ == "__main__":
    main()
