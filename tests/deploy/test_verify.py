import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from deploy_checks import functional, images, pyramid, unchecked_freezing
from requirements import needs_interpreter, needs_runtime

import keras_binaryvit as kb
from keras_binaryvit.deploy import flatbuffer as flatbuffers
from keras_binaryvit.deploy.verify import first_difference

if keras.backend.backend() != "tensorflow":
    pytest.skip("LCE's interpreter is compared with the TensorFlow backend", allow_module_level=True)
pytestmark = needs_interpreter

IMAGES = np.random.default_rng(3).normal(size=(100, 16, 16, 3)).astype("float32")


@pytest.fixture(scope="module")
def model():
    return pyramid()


@pytest.fixture(scope="module")
def flatbuffer(model):
    return kb.deploy.convert(model)


def changed(model, change):
    """Returns a copy of `model` of which one part is changed."""
    copy = pyramid()
    copy.set_weights(model.get_weights())
    change(copy)
    return copy


def scale_gamma(layer):
    layer.gamma.assign(layer.gamma * 1.5)


@pytest.mark.parametrize(
    "part, expected",
    [
        (lambda m: m.get_layer("patch_embedding").norm, "patch_embedding-convolution-convolution"),
        (lambda m: m.get_layer("block_0").attention.key.norm, "block_0-attention-key-convolution"),
        (lambda m: m.get_layer("block_1").feed_forward.reduce.norm, "block_1-feed_forward-reduce-convolution"),
        (lambda m: m.get_layer("norm"), "head-dense"),
    ],
)
def test_the_first_layer_that_differs_is_named(model, flatbuffer, part, expected):
    other = changed(model, lambda m: scale_gamma(part(m)))
    assert first_difference(other, flatbuffer, IMAGES[0]).startswith(f"{expected}: ")


@pytest.mark.parametrize(
    "part, expected",
    [
        (lambda m: m.get_layer("patch_embedding").norm, "patch_embedding-convolution-convolution"),
        (lambda m: m.get_layer("norm"), "head-dense"),
    ],
)
def test_conversion_checks_what_was_written(model, flatbuffer, part, expected, monkeypatch):
    """Stands for converters that merge operators wrongly."""
    written = vars(flatbuffers.unpack(flatbuffer))
    converting = sys.modules["keras_binaryvit.deploy.convert"]
    monkeypatch.setattr(converting, "take_any_batch", lambda file, size: vars(file).update(written))
    with unchecked_freezing():
        kb.deploy.convert(changed(model, lambda m: None))
        with pytest.raises(kb.deploy.ConversionError, match=f"The output 0 differs by .* The first .* is {expected}: "):
            kb.deploy.convert(changed(model, lambda m: scale_gamma(part(m))))


def test_no_layer_differs(model, flatbuffer):
    assert first_difference(model, flatbuffer, IMAGES[0]) is None
    result = kb.deploy.verify(model, flatbuffer, IMAGES, labels=np.zeros(len(IMAGES), int))
    assert result.agreement == 1 and result.first_difference is None
    assert result.largest_difference < 1e-5 and result.mean_difference <= result.largest_difference
    expected = model.predict(IMAGES, verbose=0)
    assert result.model_accuracy == result.flatbuffer_accuracy == np.mean(expected.argmax(-1) == 0)
    np.testing.assert_allclose(result.flatbuffer_logits, kb.deploy.run(flatbuffer, IMAGES))
    np.testing.assert_allclose(result.model_logits, expected, rtol=1e-5, atol=1e-5)


def real_pyramid():
    """What is between its stages is real."""
    return pyramid(image_shape=(32, 32, 3), stem="convolutions", binary_patch_merging=False)


def residual_convolutions():
    def network(x):
        x = keras.layers.Conv2D(8, 3, padding="same", name="stem")(x)
        y = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, padding="same", name="inner")(x))
        x = keras.layers.Add()([x, y])
        x = x + keras.ops.convert_to_tensor(np.random.default_rng(0).normal(size=(12, 12, 8)), "float32")
        return keras.layers.Dense(4, name="last")(keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x)))

    return functional((12, 12, 3), network)


@needs_runtime
@pytest.mark.parametrize("ops", ["lce", "fused"])
@pytest.mark.parametrize(
    "create, parts",
    [
        (
            real_pyramid,
            {
                "patch_merging_1-convolution-convolution": lambda m: m.get_layer("patch_merging_1").convolution,
                "head-dense": lambda m: m.get_layer("head"),
            },
        ),
        (
            residual_convolutions,
            {
                "stem-convolution": lambda m: m.get_layer("stem"),
                "inner-convolution": lambda m: m.get_layer("inner"),
                "last-dense": lambda m: m.get_layer("last"),
            },
        ),
    ],
)
def test_a_tensor_that_a_converter_moved_a_constant_out_of_is_no_difference(ops, create, parts):
    """It has the name and the shape of a layer's output, and what is read of it adds the constant."""
    model = create()
    flatbuffer, (image,) = kb.deploy.convert(model, ops), images(model, 1)
    assert first_difference(model, flatbuffer, image) is None
    for expected, part in parts.items():
        kernel = part(model).kernel
        value = kernel.numpy()
        kernel.assign(value * 1.5)
        assert first_difference(model, flatbuffer, image).startswith(f"{expected}: ")
        kernel.assign(value)


def test_classes_that_differ_are_an_error_that_names_the_layer(model, flatbuffer):
    other = changed(model, lambda m: scale_gamma(m.get_layer("block_0").attention.key.norm))
    with pytest.raises(kb.deploy.VerificationError, match="agree on .*first_difference='block_0-attention-key"):
        kb.deploy.verify(other, flatbuffer, IMAGES, min_agreement=1.0)


def test_logits_that_differ_are_an_error_though_the_classes_agree(model, flatbuffer):
    def double(m):
        m.get_layer("head").kernel.assign(m.get_layer("head").kernel * 2)
        m.get_layer("head").bias.assign(m.get_layer("head").bias * 2)

    with pytest.raises(kb.deploy.VerificationError, match="agree on 100.00%.*differ by"):
        kb.deploy.verify(changed(model, double), flatbuffer, IMAGES)


def test_classes_whose_logits_are_equal_but_for_rounding_agree():
    def network(difference):
        inputs = keras.Input((4,))
        dense = keras.layers.Dense(3, kernel_initializer="zeros")
        model = keras.Model(inputs, dense(inputs))
        dense.bias.assign([1.0, 1.0 + difference, 0.0])
        return model

    x = np.zeros((2, 4), "float32")
    assert kb.deploy.verify(network(-2e-7), kb.deploy.convert(network(2e-7)), x).agreement == 1.0
    with pytest.raises(kb.deploy.VerificationError, match="agree on 0.00% of 2 images"):
        kb.deploy.verify(network(-1e-5), kb.deploy.convert(network(1e-5)), x)


def test_another_number_of_classes(flatbuffer):
    with pytest.raises(ValueError, match=r"outputs of shape \[\(2, 7\)\], the flatbuffer \[\(2, 5\)\]"):
        kb.deploy.verify(pyramid(num_classes=7), flatbuffer, IMAGES[:2])


def test_conversion_on_jax_gives_the_same_flatbuffer(model, flatbuffer, tmp_path):
    """Of a model with a layer of the user's own, too, from a module beside the script."""
    pytest.importorskip("jax", reason="JAX isn't installed")
    model.save(tmp_path / "model.keras")
    (tmp_path / "my_layers.py").write_text(
        textwrap.dedent("""
        import keras

        @keras.saving.register_keras_serializable("mine")
        class Twice(keras.layers.Layer):
            def call(self, inputs):
                return 2 * inputs
        """)
    )
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
        import sys, keras, keras_binaryvit as kb, my_layers
        assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules
        model = keras.saving.load_model("model.keras")
        twice = keras.Model(model.inputs, my_layers.Twice()(model.outputs[0]))
        open("twice.tflite", "wb").write(kb.deploy.convert(twice))
        """)
    )
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, check=True)
    twice = (tmp_path / "twice.tflite").read_bytes()
    assert kb.deploy.count_operators(twice) == kb.deploy.count_operators(flatbuffer)  # the factor is in the head
    expected = kb.deploy.run(flatbuffer, IMAGES[:4])
    np.testing.assert_allclose(kb.deploy.run(twice, IMAGES[:4]), 2 * expected, rtol=1e-5)


def test_verify_notices_a_model_that_diverged(model, flatbuffer):
    other = changed(model, lambda m: m.get_layer("head").bias.assign(np.full(5, np.nan)))
    with pytest.raises(kb.deploy.VerificationError, match="not finite"):
        kb.deploy.verify(other, flatbuffer, IMAGES)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.full((1, 16, 16, 3), np.nan), "not finite"),
        (np.zeros((1, 16, 16, 1)), r"\(16, 16, 3\).*\(16, 16, 1\)"),
        (np.zeros((0, 16, 16, 3)), "batches of 1.*Received: 0"),
    ],
)
def test_wrong_images(model, flatbuffer, images, message):
    with pytest.raises(ValueError, match=message):
        kb.deploy.verify(model, flatbuffer, images)


def test_wrong_labels_and_files(model, flatbuffer):
    with pytest.raises(ValueError, match="Each image needs a label"):
        kb.deploy.verify(model, flatbuffer, IMAGES, labels=[1])
    with pytest.raises(ValueError, match="no TFLite flatbuffer"):
        kb.deploy.count_operators(b"nothing of the kind")
