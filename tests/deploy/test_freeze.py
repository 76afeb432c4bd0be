import keras
import numpy as np
import pytest

import keras_binaryvit as kb
from keras_binaryvit.deploy.freeze import quantized_layers


def randomize(model, seed=0):
    """Gives every variable a value that shows mistakes: no zero shifts, no unit scales, clips that let bits through."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        value = rng.normal(0, 0.3, variable.shape)
        if variable.path.endswith("clip"):
            value = 0.05
        elif variable.path.endswith("moving_variance"):
            value = np.abs(value) + 0.5
        variable.assign(value)
    return model


def small_model(**options):
    defaults = {"image_shape": (16, 16, 3), "num_classes": 5, "patch_size": 2, "embed_dims": (16, 32), "depths": (1, 1)}
    defaults |= {"num_heads": (1, 2), "reductions": (2, 1), "expansions": (2, 2)}
    return randomize(kb.BinaryViT(**(defaults | options)))


IMAGES = np.random.default_rng(1).normal(size=(4, 16, 16, 3)).astype("float32")


@pytest.mark.parametrize("binary_patch_merging", [True, False])
def test_equals_the_training_model(binary_patch_merging):
    model = small_model(binary_patch_merging=binary_patch_merging)
    frozen = kb.deploy.freeze(model)
    binary = [layer for layer in quantized_layers(frozen) if layer.is_binary]
    assert len(binary) == 7 + 6 + binary_patch_merging
    for layer in binary:
        assert layer.is_frozen
        assert set(np.unique(keras.ops.convert_to_numpy(layer.kernel))) == {-1.0, 1.0}
    assert not frozen.trainable_variables
    np.testing.assert_array_equal(frozen.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0))


def test_kernels_are_what_the_reference_says():
    model = small_model()
    kernel = keras.ops.convert_to_numpy(model.get_layer("block_0").attention.query.dense.kernel)
    layer = kb.deploy.freeze(model).get_layer("block_0").attention.query.dense
    signs = np.where(kernel - kernel.mean(0) >= 0, 1, -1)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.kernel)[0, 0], signs)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.scale), np.abs(kernel).mean(0), rtol=1e-6)


def test_saves_and_loads(tmp_path):
    frozen = kb.deploy.freeze(small_model())
    frozen.save(tmp_path / "frozen.keras")
    loaded = keras.saving.load_model(tmp_path / "frozen.keras")
    np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), frozen.predict(IMAGES, verbose=0))


def test_frozen_again_is_the_same():
    frozen = kb.deploy.freeze(small_model())
    again = kb.deploy.freeze(frozen)
    np.testing.assert_array_equal(again.predict(IMAGES, verbose=0), frozen.predict(IMAGES, verbose=0))


def test_mixed_precision_freezes_to_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small_model()
    finally:
        keras.config.set_dtype_policy("float32")
    frozen = kb.deploy.freeze(model)
    assert {layer.dtype_policy.name for layer in frozen._flatten_layers()} == {"float32"}


def test_unbuilt_and_subclassed_models_are_refused():
    with pytest.raises(ValueError, match="no weights yet"):
        kb.deploy.freeze(keras.Sequential([kb.layers.QuantDense(3)]))

    class Subclassed(keras.Model):
        def build(self, input_shape):
            self.built = True

        def call(self, inputs):
            return inputs

    model = Subclassed(name="mine")
    model.build((None, 3))
    with pytest.raises(ValueError, match="mine.*Subclassed"):
        kb.deploy.freeze(model)


def test_kernels_of_other_values_are_refused():
    inputs = keras.Input((4,))
    layer = kb.layers.QuantDense(3, kernel_quantizer="ste_heaviside", name="steps")
    with pytest.raises(ValueError, match="steps"):
        kb.deploy.freeze(keras.Model(inputs, layer(inputs)))


def test_layers_that_hide_a_binary_kernel_are_refused():
    class Hiding(keras.layers.Layer):
        def build(self, input_shape):
            self.dense = kb.layers.QuantDense(3, input_quantizer="ste_sign", kernel_quantizer="ste_sign", name="hidden")
            self.dense.build(input_shape)

        def call(self, inputs):
            return self.dense(inputs)

    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="hidden.*kernel_quantizer"):
        kb.deploy.freeze(keras.Model(inputs, Hiding()(inputs)))
