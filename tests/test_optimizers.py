"""Bop and CaseOptimizer against Larq's, step by step; AdamW against PyTorch's and Keras's."""

import keras
import numpy as np
import pytest
from gradients import compiled
from keras import ops
from larq_optimizers_recording import BOPS, gradients, recording, variables
from layer_checks import flat_vit
from requirements import needs_larq

import keras_binaryvit as kb
from keras_binaryvit.optimizers import AdamW, Bop, CaseOptimizer


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def keras_variables(count):
    return [keras.Variable(value, name=f"kernel_{index}") for index, value in enumerate(variables()[:count])]


def argument(value):
    if isinstance(value, tuple):
        return getattr(keras.optimizers.schedules, value[0])(**value[1])
    return value


def trajectory(optimizer, weights, steps):
    """Yields the weights after each step; on JAX by way of `stateless_apply`, as `fit` does it."""
    optimizer.build(weights)
    step = compiled(optimizer.stateless_apply)
    for grads in steps:
        grads = [ops.convert_to_tensor(gradient) for gradient in grads[: len(weights)]]
        if keras.backend.backend() == "jax":
            state = [v.value for v in optimizer.variables], grads, [v.value for v in weights]
            new_weights, new_state = step(*state)
            for variable, value in zip([*weights, *optimizer.variables], [*new_weights, *new_state], strict=True):
                variable.assign(value)
        else:
            optimizer.apply(grads, weights)
        yield [numpy(weight) for weight in weights]


def copied(optimizer):
    return keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))


# --- Larq ---


@needs_larq
@pytest.mark.parametrize("index", range(len(BOPS)))
def test_bop_equals_larq(index):
    arguments = {name: argument(value) for name, value in BOPS[index].items()}
    for step, weights in enumerate(trajectory(copied(Bop(**arguments)), keras_variables(4), gradients())):
        for number, weight in enumerate(weights):
            np.testing.assert_array_equal(weight, recording()[f"bop{index}/{step}/{number}"], f"{step}, {number}")
            assert set(np.unique(weight)) <= {-1, 1}


def case_optimizer():
    return CaseOptimizer(
        (lambda variable: len(variable.shape) == 4, Bop(threshold=0.05, gamma=0.1)),
        (lambda variable: variable.shape[0] == 7, keras.optimizers.SGD(0.1, momentum=0.9)),
        default_optimizer=keras.optimizers.SGD(0.01),
    )


@needs_larq
def test_case_optimizer_equals_larq():
    optimizer = case_optimizer()
    for step, weights in enumerate(trajectory(optimizer, keras_variables(5), gradients())):
        for number, weight in enumerate(weights):
            expected = recording()[f"case/{step}/{number}"]
            np.testing.assert_allclose(weight, expected, rtol=1e-6, atol=1e-6, err_msg=f"{step}, {number}")
    assert optimizer.assignment == [1, 0, 2, 2, 2]
    assert [int(each.iterations) for each in (optimizer, *optimizer.optimizers)] == [8] * 4


# --- Bop ---


def test_bop_keeps_nan():
    *_, (weight,) = trajectory(Bop(), [keras.Variable([1.0, -1.0])], [[np.array([np.nan, 0], "float32")]])
    np.testing.assert_array_equal(weight, [np.nan, -1])


def test_bop_hyperparameters_change():
    optimizer, weight = Bop(threshold=0.5, gamma=1.0), keras.Variable([1.0, -1.0])
    steps = [[np.array([0.4, -0.4], "float32")]]
    assert np.array_equal(next(trajectory(optimizer, [weight], steps))[0], [1, -1])
    optimizer.threshold.assign(0.3)
    assert np.array_equal(next(trajectory(optimizer, [weight], steps))[0], [-1, 1])
    assert copied(optimizer).get_config() == optimizer.get_config()
    assert optimizer.get_config()["threshold"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"threshold": -1.0}, "threshold=-1"),
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"use_ema": True}, "use_ema"),
    ],
)
def test_bop_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        Bop(**arguments)


def binary_variables(model):
    return [v.path for v in model.trainable_variables if Bop.is_binary_variable(v)]


def small_model(**arguments):
    stages = {"embed_dims": (16, 32), "depths": (1, 1), "num_heads": (1, 2), "sr_ratios": (2, 1), "mlp_ratios": (2, 2)}
    return kb.BinaryViT((8, 8, 1), 10, patch_size=2, **stages, **arguments)


def test_binary_variables_are_the_kernels_of_one_bit():
    paths = binary_variables(small_model())
    assert len(paths) == 2 * 6 + 1 + 1  # four projections and two dense layers a block, a reduction and a merging
    assert all(path.endswith("dense/kernel") or path == "patch_merging_1/convolution/kernel" for path in paths)
    dense = [kb.layers.QuantDense(3, kernel_quantizer=q) for q in (None, "ste_tern", kb.quantizers.NoOp(1), "ste_sign")]
    assert len(binary_variables(keras.Sequential([keras.Input((4,)), *dense]))) == 2


# --- Training ---


def trained_with_bop(optimizer):
    keras.utils.set_random_seed(3)
    model = flat_vit((8, 8, 1), 10, 4, embed_dim=32, depth=1, num_heads=1, kernel_quantizer="ste_sign")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # A few steps as they are take less time than a compilation.
    backend = keras.backend.backend()
    model.compile(optimizer, loss, jit_compile=backend == "jax", run_eagerly=backend == "tensorflow")
    images, labels = next(iter(kb.data.load("digits", "train", batch_size=64).as_numpy_iterator()))
    return model, model.fit(images, labels, batch_size=32, epochs=8, verbose=0).history, (images, labels)


def bop_and_adam():
    return CaseOptimizer((Bop.is_binary_variable, Bop(1e-6, 1e-2)), default_optimizer=keras.optimizers.Adam(0.01))


def test_bop_trains_a_binary_vit_and_continues_after_loading(tmp_path):
    model, history, (images, labels) = trained_with_bop(bop_and_adam())
    assert history["loss"][-1] < 0.75 * history["loss"][0]
    for variable in model.trainable_variables:
        if Bop.is_binary_variable(variable):
            assert set(np.unique(numpy(variable))) == {-1, 1}

    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert loaded.optimizer.assignment == model.optimizer.assignment
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    for ours, theirs in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(numpy(ours), numpy(theirs))
    for each in (model, loaded):
        each.fit(images, labels, batch_size=32, epochs=1, shuffle=False, verbose=0)
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_allclose(numpy(ours), numpy(theirs), atol=1e-5)


def test_case_optimizer_under_loss_scaling():
    optimizer = keras.optimizers.LossScaleOptimizer(bop_and_adam())
    plain = bop_and_adam()
    for one, scaled in zip(
        trajectory(plain, named_variables(), gradients()),
        trajectory(optimizer, named_variables(), ([2**15 * gradient for gradient in step] for step in gradients())),
        strict=True,
    ):
        for expected, actual in zip(one, scaled, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def named_variables():
    weights = keras_variables(5)
    weights[0].precision = 1
    return weights


# --- CaseOptimizer ---


def test_two_claims():
    optimizer = CaseOptimizer((lambda v: True, Bop(name="first")), (lambda v: True, Bop(name="second")))
    with pytest.raises(ValueError, match="'first' and 'second' both claim the variable 'kernel_0'"):
        optimizer.build(keras_variables(2))


def test_no_claim():
    optimizer = CaseOptimizer((lambda v: False, Bop(name="idle")), default_optimizer=keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="'idle' claims no variable"):
        optimizer.build(keras_variables(2))


def test_without_default_the_rest_stays_as_it_is():
    optimizer = CaseOptimizer((lambda v: v.path == "kernel_1", Bop(threshold=0.0, gamma=1.0)))
    weights = keras_variables(3)
    before = [numpy(weight) for weight in weights]
    with pytest.warns(UserWarning, match="kernel_0, kernel_2"):
        *_, after = trajectory(optimizer, weights, gradients())
    assert [np.array_equal(*pair) for pair in zip(before, after, strict=True)] == [True, False, True]
    with pytest.raises(AttributeError, match="no default optimizer"):
        _ = optimizer.learning_rate


@pytest.mark.parametrize(
    "pair, message",
    [((0, Bop()), "predicate of pair 0"), ((Bop.is_binary_variable, "adam"), "keras.optimizers.Optimizer")],
)
def test_case_optimizer_types(pair, message):
    with pytest.raises(TypeError, match=message):
        CaseOptimizer(pair)


def test_inner_optimizers_scale_no_loss():
    with pytest.raises(ValueError, match="around the CaseOptimizer.*'mine'"):
        CaseOptimizer(default_optimizer=keras.optimizers.SGD(0.1, loss_scale_factor=2.0, name="mine"))


def test_learning_rate_is_the_defaults():
    optimizer = bop_and_adam()
    optimizer.learning_rate = 0.5
    assert float(optimizer.default.learning_rate) == float(optimizer.learning_rate) == 0.5


def test_saved_without_variables():
    optimizer = copied(bop_and_adam())
    with pytest.raises(ValueError, match="predicates aren't saved"):
        optimizer.build(named_variables())


def test_loaded_for_another_model():
    optimizer = bop_and_adam()
    optimizer.build(named_variables())
    with pytest.raises(ValueError, match="saved with 5 variables, and the model has 3"):
        copied(optimizer).build(keras_variables(3))


# --- AdamW ---


def test_adamw_equals_pytorch():
    torch = pytest.importorskip("torch")
    theirs = [torch.nn.Parameter(torch.tensor(value)) for value in variables()]
    optimizer = torch.optim.AdamW(
        [{"params": theirs[:2], "weight_decay": 0.1}, {"params": theirs[2:], "weight_decay": 0.0}], lr=0.01
    )
    names = ("kernel", "kernel", "bias", "gamma", "kernel_scale")
    ours = [keras.Variable(value, name=name) for name, value in zip(names, variables(), strict=True)]
    for step, weights in enumerate(trajectory(copied(AdamW(0.01, weight_decay=0.1)), ours, gradients())):
        for parameter, gradient in zip(theirs, gradients()[step], strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
        for weight, parameter in zip(weights, theirs, strict=True):
            np.testing.assert_allclose(weight, parameter.detach().numpy(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("small_size", [0, 24, 2**14])
@pytest.mark.parametrize("arguments", [{}, {"clipnorm": 0.5}, {"use_ema": True}, {"gradient_accumulation_steps": 2}])
def test_small_variables_together_equal_keras(monkeypatch, small_size, arguments):
    """None, some or all variables are small; a scalar is among them."""
    monkeypatch.setattr(AdamW, "small_size", small_size)

    def weights():
        return [*(keras.Variable(value, name="kernel") for value in variables()), keras.Variable(0.5, name="clip")]

    steps = [[*step, np.float32(0.1 * index)] for index, step in enumerate(gradients())]
    theirs = keras.optimizers.AdamW(0.01, weight_decay=0.1, epsilon=1e-8, **arguments)
    theirs.exclude_from_weight_decay(var_names=["clip"])
    expected = trajectory(theirs, weights(), steps)
    for ours, keras_weights in zip(trajectory(AdamW(0.01, 0.1, **arguments), weights(), steps), expected, strict=True):
        for actual, weight in zip(ours, keras_weights, strict=True):
            np.testing.assert_allclose(actual, weight, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("small_size", [0, 24, 2**14])
def test_variables_without_gradient_stay(monkeypatch, small_size):
    """As where layers are frozen while the optimizer lives on: their averages wait, those of the others move."""
    monkeypatch.setattr(AdamW, "small_size", small_size)
    ours, theirs = keras_variables(5), keras_variables(5)
    optimizers = AdamW(0.01), keras.optimizers.Adam(0.01, epsilon=1e-8)
    for optimizer, weights in zip(optimizers, (ours, theirs), strict=True):
        optimizer.build(weights)
        for step, present in zip(gradients(), [slice(None), slice(1, 3), slice(3, 5), slice(None)], strict=False):
            optimizer.apply([ops.convert_to_tensor(gradient) for gradient in step[present]], weights[present])
    for actual, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(numpy(actual), numpy(expected), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("saved", [False, True])
def test_only_kernels_decay(saved):
    """With gradients of zero a step is the decay alone."""
    model = small_model()
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    optimizer = AdamW(0.1, weight_decay=0.5)
    *_, weights = trajectory(
        copied(optimizer) if saved else optimizer,
        model.trainable_variables,
        [[np.zeros(variable.shape, "float32") for variable in model.trainable_variables]],
    )
    decayed = {v.path for v, w in zip(model.trainable_variables, weights, strict=True) if not (w == 1).all()}
    others = {"patch_embedding/convolution/kernel", "head/kernel"}
    assert decayed == others | set(binary_variables(model))
    for variable, weight in zip(model.trainable_variables, weights, strict=True):
        np.testing.assert_allclose(weight, 0.95 if variable.path in decayed else 1.0, rtol=1e-6)


def test_without_decay_weights_stay():
    optimizer, weights = AdamW(0.1), keras_variables(1)
    before = numpy(weights[0])
    *_, (after,) = trajectory(optimizer, weights, [[np.zeros(weights[0].shape, "float32")]])
    np.testing.assert_array_equal(after, before)
    assert optimizer.get_config()["weight_decay"] == 0 and optimizer.get_config()["epsilon"] == 1e-8


def test_negative_decay():
    with pytest.raises(ValueError, match="weight_decay=-0.1"):
        AdamW(weight_decay=-0.1)
