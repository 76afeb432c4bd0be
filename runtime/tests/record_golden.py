"""Records the golden networks and what LCE's interpreter makes of them: `python tests/record_golden.py`.

Needs larq, larq-compute-engine and keras-binaryvit. Each network is converted in a process of its own, as Larq wants
Keras 2 and keras-binaryvit Keras 3.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
IMAGES = 4


def residual_network():
    """A residual network of Larq's layers: strides, zeros and ones around maps, bits between layers, binary pooling."""
    import larq
    import larq_compute_engine as lce
    import tf_keras

    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(0)

    def normalize(x):
        normal = tf_keras.initializers.RandomNormal
        return layers.BatchNormalization(gamma_initializer=normal(0.5, 1), beta_initializer=normal(0, 1))(x)

    def convolve(x, filters, **settings):
        quantizers = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign", "use_bias": False}
        settings = {"padding": "same", "pad_values": 1.0} | quantizers | settings
        return normalize(larq.layers.QuantConv2D(filters, 3, **settings)(x))

    inputs = tf_keras.Input((32, 32, 3))
    x = normalize(layers.Conv2D(32, 3, strides=2, padding="same")(inputs))
    x = layers.Add()([x, convolve(x, 32)])
    x = layers.Add()([x, convolve(x, 32, pad_values=0.0)])
    x = convolve(convolve(x, 64, activation="relu"), 64)
    x = layers.Add()([layers.MaxPool2D(2, padding="same")(x), convolve(x, 64, strides=2)])
    x = layers.MaxPool2D(2)(larq.quantizers.SteSign()(x))
    x = convolve(x, 40, padding="valid")
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    return lce.convert_keras_model(tf_keras.Model(inputs, x))


def vision_transformer():
    """A BinaryViT of two stages."""
    import keras
    import keras_binaryvit as kb

    keras.utils.set_random_seed(0)
    stages = {"embed_dims": (32, 64), "depths": (1, 1), "num_heads": (1, 2), "sr_ratios": (2, 1), "mlp_ratios": (4, 4)}
    model = kb.BinaryViT(image_shape=(32, 32, 3), num_classes=10, **stages)
    rng = np.random.default_rng(0)
    for variable in model.variables:  # as after training: no zero shifts, no equal slopes
        if not any(name in variable.path for name in ("moving_variance", "clip", "kernel", "seed")):
            variable.assign_add(rng.normal(size=variable.shape) * 0.1)
    return kb.deploy.convert(model)


NETWORKS = {"residual": residual_network, "transformer": vision_transformer}


def main():
    """Records one network, or all."""
    if len(sys.argv) == 1:
        for name in NETWORKS:
            legacy = "1" if name == "residual" else "0"
            environment = {**os.environ, "TF_USE_LEGACY_KERAS": legacy, "KERAS_BACKEND": "tensorflow"}
            subprocess.run([sys.executable, __file__, name], env=environment, check=True)
        return
    name = sys.argv[1]
    flatbuffer = NETWORKS[name]()
    import larq_compute_engine as lce

    images = np.random.default_rng(1).normal(size=(IMAGES, 32, 32, 3)).astype(np.float32)
    outputs = lce.testing.Interpreter(flatbuffer).predict(images)
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / f"{name}.tflite").write_bytes(flatbuffer)
    np.savez_compressed(GOLDEN / f"{name}.npz", images=images, outputs=outputs)
    print(name, len(flatbuffer), flatbuffer.count(b"LceB"), np.abs(outputs).max())


if __name__ == "__main__":
    main()
