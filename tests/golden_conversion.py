"""Records what the Larq Compute Engine's converter makes of frozen models, for machines that don't have it.

python tests/golden_conversion.py     # Python 3.11 or 3.12 on x86-64 Linux; writes tests/golden/converted_*
"""

import sys
from pathlib import Path

import keras

sys.path.insert(0, str(Path(__file__).parent / "deploy"))
from deploy_checks import functional, pyramid

import keras_binaryvit as kb

GOLDEN = Path(__file__).parent / "golden"
BINARY = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign", "use_bias": False}


def convolutions(x):
    """Packed outputs, activations and poolings of convolutions, which converters make one operator of."""
    conv, layers = kb.layers.QuantConv2D, keras.layers
    x = layers.BatchNormalization()(conv(40, 3, padding="same", pad_values=1, **BINARY)(layers.Conv2D(32, 3)(x)))
    x = layers.BatchNormalization()(conv(64, 3, strides=2, **BINARY)(x))
    x = layers.MaxPooling2D(2)(layers.ReLU()(conv(64, 1, groups=2, **BINARY)(x)))
    x = layers.ReLU(6)(conv(32, 1, **BINARY)(x))
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(conv(32, 1, **BINARY)(x)))


MODELS = {
    "convolutions": (lambda: functional((16, 16, 3), convolutions), "lce"),
    "pyramid": (pyramid, "lce"),
    "pyramid_fused": (pyramid, "fused"),
}


def main() -> None:
    """Writes the frozen models and their files."""
    for name, (create, ops) in MODELS.items():
        frozen = kb.deploy.freeze(create(), ops)
        frozen.save(GOLDEN / f"converted_{name}.keras")
        (GOLDEN / f"converted_{name}.tflite").write_bytes(kb.deploy.convert(frozen, ops, converter="lce"))


if __name__ == "__main__":
    main()
