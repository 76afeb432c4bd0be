"""Products of two activations against LiteRT's own and NumPy in float64, whatever values they hold."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from binaryvit_runtime import load_delegate
from binaryvit_runtime.profile import read_profile
from graphs import Operator, graph, run_both
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Tensor

NONE, RELU, RELU_N1_TO_1, RELU6 = range(4)
CLAMPS = {NONE: (-np.inf, np.inf), RELU: (0, np.inf), RELU_N1_TO_1: (-1, 1), RELU6: (0, 6)}

# What an operand holds: two values, which the kernels multiply as bits, or others.
PAIRS = {
    "signs": (-1, 1),
    "scaled signs": (-0.125, 0.125),
    "probabilities": (0, 0.37),
    "below zero": (-0.3, 0),
    "two values": (-1.7, 0.45),
    "neighbors": (1, np.nextafter(np.float32(1), np.float32(2))),
    "zeros": (0, 0),
    "one value": (2.5, 2.5),
}
KINDS = [*PAIRS, "reals", "one other value"]


def operand(rng, kind, shape):
    """Returns an operand's values."""
    if kind == "reals":
        return rng.normal(size=shape).astype(np.float32)
    values = rng.choice(np.array(PAIRS.get(kind, (-1, 1)), np.float32), shape)
    values[(values == 0) & (rng.random(shape) < 0.5)] = -0.0
    if kind == "one other value":
        values.flat[rng.integers(values.size)] = 0.5
    return values


def product(rng, lead, units, depth, kinds, keep, bias, activation=NONE):
    """Returns the tensors, operator and values of a node."""
    x, w = operand(rng, kinds[0], (*lead, depth)), operand(rng, kinds[1], (units, depth))
    shape = (*lead, units) if keep else (int(np.prod(lead)), units)
    tensors = {"x": Tensor(x.shape, "float32"), "w": Tensor(w.shape, "float32"), "y": Tensor(shape, "float32")}
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction, options.keepNumDims = activation, keep
    inputs, b = ["x", "w"], np.zeros(units, np.float32)
    if bias == "constant":
        b = rng.normal(size=units).astype(np.float32)
        tensors["b"] = Tensor(b.shape, "float32", b)
        inputs.append("b")
    elif bias == "left out":
        inputs.append(None)
    return tensors, [Operator("FULLY_CONNECTED", inputs, ["y"], options)], {"x": x, "w": w}, b


def expected(x, w, b, activation=NONE):
    return np.clip(x.astype(np.float64) @ w.astype(np.float64).T + b, *CLAMPS[activation])


@settings(max_examples=120)
@given(
    lead=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    units=st.integers(1, 70),
    depth=st.integers(1, 140),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    keep=st.booleans(),
    bias=st.sampled_from(["none", "left out", "constant"]),
    activation=st.sampled_from([NONE, NONE, RELU, RELU_N1_TO_1, RELU6]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_equal_litert_and_numpy(lead, units, depth, kinds, keep, bias, activation, threads, seed, kernels):
    rng = np.random.default_rng(seed)
    tensors, operators, values, b = product(rng, lead, units, depth, kinds, keep, bias, activation)
    (stock,), (actual,), names = run_both(tensors, operators, values, ["y"], threads)
    assert names == ["FULLY_CONNECTED"] and actual.shape == stock.shape
    x, w = values["x"].reshape(-1, depth), values["w"]
    # Some roundings of the largest sum of products.
    tolerance = 4 * 2**-23 * (depth * np.abs(x).max() * np.abs(w).max() + np.abs(b).max())
    np.testing.assert_allclose(actual.reshape(-1, units), expected(x, w, b, activation), rtol=0, atol=tolerance)
    np.testing.assert_allclose(actual, stock, rtol=0, atol=2 * tolerance)


@pytest.mark.parametrize("rows, units, depth", [(1, 1, 3), (4, 8, 4), (7, 13, 39), (70, 49, 64)])
def test_real_numbers_are_summed_in_one_order(rows, units, depth, kernels):
    """Four sums of every fourth term, added in pairs, and then the terms that are left: the same bits everywhere."""
    rng = np.random.default_rng(0)
    tensors, operators, inputs, _ = product(rng, (rows,), units, depth, ("reals", "reals"), True, "none")
    terms = inputs["x"][:, None] * inputs["w"]
    whole = depth // 4 * 4
    sums = np.zeros((rows, units, 4), np.float32)
    for k in range(0, whole, 4):
        sums += terms[..., k : k + 4]
    total = (sums[..., 0] + sums[..., 1]) + (sums[..., 2] + sums[..., 3])
    for k in range(whole, depth):
        total += terms[..., k]
    (_,), (actual,), _ = run_both(tensors, operators, inputs, ["y"])
    np.testing.assert_array_equal(actual, total)


@pytest.mark.parametrize("depth", [31, 64, 100, 1000])
def test_sums_of_signs_and_of_zeros_and_ones_are_exact(depth, kernels):
    rng = np.random.default_rng(0)
    x = rng.choice(np.array([-1, 1], np.float32), (150, depth))
    for values in x, (x + 1) / 2:
        tensors, operators, inputs, b = product(rng, (150,), 40, depth, ("signs", "signs"), True, "none")
        inputs["x"] = values
        (stock,), (actual,), _ = run_both(tensors, operators, inputs, ["y"])
        np.testing.assert_array_equal(actual, expected(values, inputs["w"], b))
        np.testing.assert_array_equal(actual, stock)


def test_some_rows_of_real_numbers_among_signs(kernels):
    """Each task looks at its own rows."""
    rng = np.random.default_rng(0)
    tensors, operators, inputs, b = product(rng, (2, 150), 70, 90, ("signs", "signs"), True, "constant")
    inputs["x"][1, 3] = rng.normal(size=90)
    (_,), (actual,), _ = run_both(tensors, operators, inputs, ["y"])
    np.testing.assert_allclose(actual, expected(inputs["x"], inputs["w"], b), atol=1e-4)


@pytest.mark.parametrize("which", ["x", "w"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e36, 1e-40])
def test_numbers_at_the_ends_of_floats(which, value, kernels):
    """Products that aren't finite, and their NaNs, are where LiteRT has them."""
    rng = np.random.default_rng(0)
    tensors, operators, inputs, _ = product(rng, (9,), 20, 40, ("signs", "signs"), True, "none")
    inputs[which][inputs[which] < 0] = value
    (stock,), (actual,), _ = run_both(tensors, operators, inputs, ["y"])
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(stock))
    finite = np.isfinite(stock)
    np.testing.assert_array_equal(actual[~finite], stock[~finite])
    largest = np.abs(stock[finite]).max(initial=0)
    np.testing.assert_allclose(actual[finite], stock[finite], rtol=0, atol=1e-5 * largest)


def test_a_nan_stays_in_its_row(kernels):
    """Also where it is the only other value, and rows far from it hold one."""
    rng = np.random.default_rng(0)
    tensors, operators, inputs, _ = product(rng, (150,), 20, 40, ("one value", "signs"), True, "none")
    inputs["x"][149, 3] = np.nan
    (_,), (actual,), _ = run_both(tensors, operators, inputs, ["y"])
    assert np.isnan(actual[149]).all()
    np.testing.assert_allclose(actual[:149], expected(inputs["x"][:149], inputs["w"], 0), atol=1e-4)


def test_resized_inputs(kernels):
    rng = np.random.default_rng(0)
    tensors, operators, _, b = product(rng, (1, 4), 6, 49, ("signs", "signs"), True, "constant")
    for lead, units in ((3, 40), 6), ((2, 1), 6):
        values = {"x": operand(rng, "signs", (*lead, 49)), "w": operand(rng, "signs", (units, 49))}
        (_,), (actual,), names = run_both(
            tensors, operators, values, ["y"], shapes={name: value.shape for name, value in values.items()}
        )
        assert names == ["FULLY_CONNECTED"]
        np.testing.assert_allclose(actual, expected(values["x"], values["w"], b), atol=1e-4)


def test_shapes_that_do_not_fit_are_refused():
    tensors, operators, values, _ = product(np.random.default_rng(0), (4,), 6, 49, ("signs", "signs"), False, "none")
    with pytest.raises(RuntimeError, match="FULLY_CONNECTED: the input has 196 values, which don.t split into rows"):
        run_both(tensors, operators, values, ["y"], shapes={"w": (6, 48)})


def constant_weights():
    tensors, operators, values, _ = product(np.random.default_rng(0), (4,), 6, 49, ("signs", "signs"), True, "none")
    tensors["w"].data = values.pop("w")
    return tensors, operators, values


def dequantized_weights():
    tensors, operators, values = constant_weights()
    tensors["half"] = Tensor((6, 49), "float16", tensors["w"].data.astype(np.float16))
    tensors["w"].data = None
    return tensors, [Operator("DEQUANTIZE", ["half"], ["w"], schema.DequantizeOptionsT()), *operators], values


@pytest.mark.parametrize("make", [constant_weights, dequantized_weights])
def test_what_litert_does_better_is_left_to_it(make):
    tensors, operators, values = make()
    (stock,), (actual,), names = run_both(tensors, operators, values, ["y"])
    assert names == []
    np.testing.assert_array_equal(actual, stock)


def test_graphs_without_binary_operators_are_left_to_litert():
    tensors, operators, values, _ = product(np.random.default_rng(0), (4,), 6, 49, ("signs", "signs"), True, "none")
    delegate = load_delegate(profile=True)
    interpreter = Interpreter(
        model_content=graph(tensors, operators, list(values), ["y"]), experimental_delegates=[delegate]
    )
    interpreter.allocate_tensors()
    assert read_profile(delegate) == []
