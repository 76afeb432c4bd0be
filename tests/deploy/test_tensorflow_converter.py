"""TensorFlow's converter against LCE's: the same operators, constants, options and bits.

Where LCE isn't installed, against files that it wrote (tests/golden_conversion.py).
"""

import keras
import numpy as np
import pytest
from deploy_checks import BINARY, functional, images, unchecked_freezing
from golden_conversion import GOLDEN, MODELS, canonical
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import layers
from requirements import needs_lce

import keras_binaryvit as kb
from keras_binaryvit.deploy import flatbuffer as flatbuffers

if keras.backend.backend() != "tensorflow":
    pytest.skip("these conversions run in this process, which needs the TensorFlow backend", allow_module_level=True)


@pytest.fixture(autouse=True, scope="module")
def fast_freezing():
    with unchecked_freezing():
        yield


def assert_same_file(model, ops="lce"):
    ours, theirs = (kb.deploy.convert(model, ops, converter=converter) for converter in ("tensorflow", "lce"))
    assert canonical(ours) == canonical(theirs)
    x = images(model, 4)
    np.testing.assert_array_equal(kb.deploy.run(ours, x), kb.deploy.run(theirs, x))
    names = [[t.name for t in (*m.inputs, *m.outputs)] for m in map(flatbuffers.read, (ours, theirs))]
    assert names[0] == names[1]


@pytest.mark.parametrize("name", MODELS)
def test_equals_lces_recorded_files(name):
    pytest.importorskip("binaryvit_runtime")
    frozen = keras.saving.load_model(GOLDEN / f"converted_{name}.keras")
    recorded = (GOLDEN / f"converted_{name}.tflite").read_bytes()
    flatbuffer = kb.deploy.convert(frozen, MODELS[name][1], converter="tensorflow")
    assert canonical(flatbuffer) == canonical(recorded)
    x = images(frozen, 8)
    np.testing.assert_array_equal(kb.deploy.run(flatbuffer, x), kb.deploy.run(recorded, x))


@needs_lce
@pytest.mark.parametrize("ops", ["lce", "fused"])
@pytest.mark.parametrize(
    "create",
    [
        lambda: kb.BinaryViT.from_preset("binaryvit_tiny_32_cifar10"),
        lambda: kb.BinaryViT.from_preset("binaryvit_small", image_shape=(64, 64, 3), depths=(1, 1, 1, 1)),
        lambda: kb.BinaryViT.from_preset("binaryvit_32", depths=(1, 1, 1)),
        *(
            lambda name=name: kb.BinaryViT.from_preset(name, image_shape=(32, 32, 3), depths=(1,))
            for name in kb.BinaryViT.presets
            if name.startswith("reactdeit")
        ),
        lambda: kb.DeiT.from_preset("deit_tiny", image_shape=(32, 32, 3), depth=1),
    ],
    ids=["tiny", "small", "32", "row_1", "row_2", "row_3", "row_4", "deit"],
)
def test_presets(create, ops):
    pytest.importorskip("binaryvit_runtime")
    assert_same_file(create(), ops)


CONVOLUTIONS = st.fixed_dictionaries(
    {
        "filters": st.just(64),
        "kernel_size": st.sampled_from([1, 2, 3]),
        "strides": st.sampled_from([1, 2]),
        "padding": st.sampled_from(["valid", "same"]),
        "pad_values": st.sampled_from([0, 1]),
        "groups": st.sampled_from([1, 1, 2]),
        "use_bias": st.booleans(),
        "input_quantizer": st.just("ste_sign"),
        "kernel_quantizer": st.sampled_from(["ste_sign", "magnitude_aware_sign"]),
    }
)
OTHERS = {
    "dense": lambda: kb.layers.QuantDense(64, **BINARY),
    "norm": layers.BatchNormalization,
    "prelu": kb.layers.RPReLU,
    "pool": lambda: layers.MaxPooling2D(2, padding="same"),
    # LCE's converter forgets an activation between a pooling and a sign; TensorFlow's doesn't.
    "relu": lambda: keras.Sequential([layers.ReLU(), kb.layers.Shift()]),
    "relu6": lambda: keras.Sequential([layers.ReLU(6.0), kb.layers.Shift()]),
}


@needs_lce
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(steps=st.lists(st.one_of(CONVOLUTIONS, CONVOLUTIONS, st.sampled_from(sorted(OTHERS))), min_size=1, max_size=4))
def test_random_networks(steps):
    def network(x):
        for step in steps:
            x = (OTHERS[step]() if isinstance(step, str) else kb.layers.QuantConv2D(**step))(x)
        return kb.layers.QuantDense(5, **BINARY)(x)

    assert_same_file(functional((12, 12, 64), network))
