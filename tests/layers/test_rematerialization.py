"""Training with `remat` against training without: the same weights and the same state."""

import keras
import numpy as np
import pytest
from gradients import layer_gradients
from layer_checks import flat_vit, normal, numpy

import keras_binaryvit as kb


def _train(remat):
    """Returns all variables after two steps of a block, dropout and running statistics among them."""
    keras.utils.set_random_seed(0)
    block = kb.layers.BinaryTransformerBlock(2, reduction=2, expansion=2, drop_path_rate=0.5, remat=remat)
    model = keras.Sequential([keras.Input((4, 4, 4)), block])
    model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=keras.backend.backend() == "jax")
    for step in range(2):
        model.train_on_batch(normal(6, 4, 4, 4, seed=step), normal(6, 4, 4, 4, seed=9))
    return [(variable.name, numpy(variable)) for variable in block.variables]


def test_training_is_the_same():
    expected, actual = _train(remat=False), _train(remat=True)
    assert {"kernel", "moving_variance", "seed_generator_state"} < {name for name, _ in expected}
    for (name, value), (_, value_with_remat) in zip(expected, actual, strict=True):
        np.testing.assert_allclose(value_with_remat, value, rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("remat", [False, True])
def test_models_pass_it_to_their_blocks(remat):
    shapes = {"image_shape": (8, 8, 3), "num_classes": 2, "patch_size": 4, "remat": remat}
    stages = {"embed_dims": (4, 8), "depths": (1, 1), "num_heads": (1, 1), "sr_ratios": (1, 1), "mlp_ratios": (1, 1)}
    for model in (kb.BinaryViT(**shapes, **stages), flat_vit(**shapes, embed_dim=4, depth=2, num_heads=1)):
        blocks = [layer for layer in model.layers if isinstance(layer, kb.layers.BinaryTransformerBlock)]
        assert [block.remat for block in blocks] == [remat, remat]
        assert model.get_config()["remat"] is remat


@pytest.mark.parametrize("remat", [False, True])
def test_the_backward_pass_computes_a_block_again(remat):
    calls = []

    class Block(kb.layers.BinaryTransformerBlock):
        def _outputs(self, inputs, training):
            calls.append(training)
            return super()._outputs(inputs, training)

    layer, x = Block(remat=remat), normal(2, 2, 2, 4)
    layer.build(x.shape)
    if keras.backend.backend() == "jax":  # it traces a block once, and the program says what is computed again
        import jax

        program = jax.make_jaxpr(lambda x: layer.stateless_call(*_state(layer), x, training=True)[0])(x)
        assert ("remat" in str(program) or "checkpoint" in str(program)) == remat
    else:
        layer_gradients(layer, x, training=True)
        assert calls == [True] * (2 if remat else 1)
    calls.clear()
    layer_gradients(layer, x, training=False)
    assert calls == [False]  # nothing is assigned at inference, and nothing computed again


def _state(layer):
    return [[v.value for v in group] for group in (layer.trainable_variables, layer.non_trainable_variables)]
