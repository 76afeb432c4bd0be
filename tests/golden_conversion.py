"""Records what the Larq Compute Engine's converter makes of frozen models, for machines that don't have it.

python tests/golden_conversion.py     # Python 3.11 or 3.12 on x86-64 Linux; writes tests/golden/converted_*
python tests/golden_conversion.py FOLDER     # anywhere; writes TensorFlow's files of these models and of others

TensorFlow's converter must write the same operators, constants and options, and the same bits on every machine:
tools/arm64_conversion.sh.
"""

import collections
import sys
from pathlib import Path

import keras

sys.path.insert(0, str(Path(__file__).parent / "deploy"))
from deploy_checks import functional, pyramid

import keras_binaryvit as kb
from keras_binaryvit.deploy import flatbuffer as flatbuffers

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


def canonical(flatbuffer):
    """Returns how often a file has each operator, whatever their order and the leading sides of 1 of their tensors."""

    def described(tensor):
        if tensor is None:
            return None
        shape = tuple(side for side in tensor.shape if side != 1) if not tensor.data else tensor.shape
        return shape, tensor.dtype, bytes(tensor.data)

    return collections.Counter(
        (
            operator.name,
            tuple(described(tensor) for tensor in operator.inputs if operator.name != "RESHAPE"),
            tuple(described(tensor)[:2] for tensor in operator.outputs if operator.name != "FULLY_CONNECTED"),
            operator.options,
        )
        for operator in flatbuffers.read(flatbuffer).operators
    )


def record() -> None:
    """Writes the frozen models and their files."""
    for name, (create, ops) in MODELS.items():
        frozen = kb.deploy.freeze(create(), ops)
        frozen.save(GOLDEN / f"converted_{name}.keras")
        (GOLDEN / f"converted_{name}.tflite").write_bytes(kb.deploy.convert(frozen, ops, converter="lce"))


def write(folder: Path) -> None:
    """Writes what TensorFlow's converter makes of the recorded models, and of trained and random ones."""
    folder.mkdir(parents=True, exist_ok=True)
    models = [
        (name, keras.saving.load_model(GOLDEN / f"converted_{name}.keras"), ops) for name, (_, ops) in MODELS.items()
    ]
    for ops in "lce", "fused":
        models.append((f"tiny_32_{ops}", kb.BinaryViT.from_preset("binaryvit_tiny_32_cifar10"), ops))
        models.append((f"random_{ops}", functional((16, 16, 3), convolutions), ops))
    for name, model, ops in models:
        content = kb.deploy.convert(model, ops, converter="tensorflow")
        (folder / f"{name}.tflite").write_bytes(content)
        if name in MODELS and canonical(content) != canonical((GOLDEN / f"converted_{name}.tflite").read_bytes()):
            raise AssertionError(f"{name}: other operators, constants or options than in the file of LCE's converter")
        print(name, flush=True)


if __name__ == "__main__":
    write(Path(sys.argv[1])) if sys.argv[1:] else record()
