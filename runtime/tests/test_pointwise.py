"""Chains of operators that the delegate runs as one, against LiteRT's own."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from binaryvit_runtime import load_delegate
from binaryvit_runtime.profile import read_profile
from graphs import Operator, graph, run_both
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Tensor, pack

NONE, RELU, RELU_N1_TO_1, RELU6 = range(4)
SAME, VALID = range(2)
seeds = st.integers(0, 2**32 - 1)


class Chain:
    """A graph that grows operator by operator, with the values of its inputs and constants."""

    def __init__(self, seed, shape):
        self.rng = np.random.default_rng(seed)
        self.tensors, self.operators, self.values = {}, [], {}
        self.last = self.add_input(shape)

    def normal(self, shape):
        return self.rng.normal(size=shape).astype(np.float32)

    def add_input(self, shape):
        name = f"input_{len(self.values)}"
        self.values[name] = self.normal(shape)
        self.tensors[name] = Tensor(tuple(shape), "float32")
        return name

    def constant(self, data):
        name = f"constant_{len(self.tensors)}"
        dtype = "int32" if data.dtype == np.int32 else "float32"
        self.tensors[name] = Tensor(data.shape, dtype, data)
        return name

    def append(self, operator, inputs, shape, options=None):
        """Adds an operator; its output, of this shape, becomes `last`."""
        self.last = f"tensor_{len(self.tensors)}"
        self.tensors[self.last] = Tensor(tuple(shape), "float32")
        self.operators.append(Operator(operator, inputs, [self.last], options))

    @property
    def shape(self):
        return self.tensors[self.last].shape

    def add(self, other, operator="ADD", swapped=False):
        options = schema.AddOptionsT() if operator == "ADD" else schema.MulOptionsT()
        self.append(operator, [other, self.last] if swapped else [self.last, other], self.shape, options)

    def broadcast(self, kind):
        shapes = {"channels": self.shape[-1:], "number": (), "rows": self.shape[-2:], "ones": (1, *self.shape[-1:])}
        return self.constant(self.normal(shapes[kind]))

    def prelu(self):
        self.append("PRELU", [self.last, self.constant(self.normal((1, 1, self.shape[-1])))], self.shape)

    def scale(self, activation, bias):
        """A depthwise convolution of one tap."""
        options = schema.DepthwiseConv2DOptionsT()
        options.padding, options.strideH, options.strideW, options.depthMultiplier = VALID, 1, 1, 1
        options.dilationHFactor = options.dilationWFactor = 1
        options.fusedActivationFunction = activation
        channels = self.shape[-1]
        filter_ = self.constant(self.normal((1, 1, 1, channels)))
        table = self.constant(self.normal((channels,)) if bias else np.zeros(channels, np.float32))
        self.append("DEPTHWISE_CONV_2D", [self.last, filter_, table], self.shape, options)

    def mean(self, expansion, activation=NONE, groups=1):
        """A convolution of one tap whose units see `expansion` channels each."""
        channels = self.shape[-1]
        units = channels // expansion
        group_channels = channels // groups
        filter_ = np.zeros((units, 1, 1, group_channels), np.float32)
        for unit in range(units):
            first = unit * expansion % group_channels
            filter_[unit, 0, 0, first : first + expansion] = self.normal(expansion)
        options = schema.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = SAME, 1, 1
        options.dilationHFactor = options.dilationWFactor = 1
        options.fusedActivationFunction = activation
        inputs = [self.last, self.constant(filter_), self.constant(self.normal((units,)))]
        self.append("CONV_2D", inputs, (*self.shape[:-1], units), options)

    def tile(self, times):
        multiples = np.array([1] * (len(self.shape) - 1) + [times], np.int32)
        shape = (*self.shape[:-1], self.shape[-1] * times)
        self.append("TILE", [self.last, self.constant(multiples)], shape, schema.TileOptionsT())

    def run(self, outputs=None, **settings):
        return run_both(self.tensors, self.operators, self.values, outputs or [self.last], **settings)


def close(actual, expected):
    """Compares but for the rounding of multiply-adds."""
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max(initial=0))


@st.composite
def chains(draw):
    """A chain of operators on a map, some of whose values are outputs as well."""
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 70)))
    chain = Chain(draw(seeds), shape)
    tensors = [chain.last]
    kinds = ["add", "sum", "constant", "product", "prelu", "scale", "mean", "tile"]
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=9)):
        alike = [name for name in tensors if chain.tensors[name].shape == chain.shape]
        if kind == "add":
            chain.add(draw(st.sampled_from([*alike, chain.add_input(chain.shape)])), swapped=draw(st.booleans()))
        elif kind == "sum":
            inputs = [chain.last, *draw(st.lists(st.sampled_from(alike), min_size=1, max_size=3))]
            chain.append("ADD_N", inputs, chain.shape, schema.AddNOptionsT())
        elif kind in ("constant", "product"):
            other = chain.broadcast(draw(st.sampled_from(["channels", "number", "rows", "ones"])))
            chain.add(other, "ADD" if kind == "constant" else "MUL", draw(st.booleans()))
        elif kind == "prelu":
            chain.prelu()
        elif kind == "scale":
            chain.scale(draw(st.sampled_from([NONE, RELU, RELU_N1_TO_1, RELU6])), draw(st.booleans()))
        elif kind == "mean" and (sizes := [size for size in (4, 5, 8) if chain.shape[-1] % size == 0]):
            chain.mean(draw(st.sampled_from(sizes)), draw(st.sampled_from([NONE, RELU_N1_TO_1])))
        elif kind == "tile" and chain.shape[-1] < 200:
            chain.tile(draw(st.integers(1, 3)))
        tensors.append(chain.last)
    return chain, [name for name in set(tensors) - set(chain.values) if draw(st.booleans())]


@settings(max_examples=150)
@given(case=chains(), threads=st.integers(1, 3))
def test_chains_equal_litert(case, threads, kernels):
    chain, outputs = case
    if not chain.operators:
        return
    stock, actual, names = chain.run(
        [chain.last, *(name for name in outputs if name != chain.last)], num_threads=threads
    )
    kinds = [operator.name for operator in chain.operators]
    assert "Pointwise" in names or len(kinds) == 1 or "CONV_2D" in kinds  # which may be LiteRT's, and part the others
    close(actual, stock)


def expansion(seed, shape, times):
    """An expansion as converted feed-forward layers have it: two outputs, the mean and the shifted values."""
    chain = Chain(seed, shape)
    product = chain.add_input((*shape[:-1], shape[-1] * times))
    chain.tile(times)
    chain.add(product, swapped=True)
    chain.prelu()
    hidden = chain.last
    chain.mean(times, groups=2)
    mean, chain.last = chain.last, hidden
    chain.add(chain.broadcast("channels"))
    return chain, [mean, chain.last]


@pytest.mark.parametrize("times", [3, 4, 8])
@pytest.mark.parametrize("shape", [(1, 7, 7, 64), (2, 5, 3, 48), (1, 1, 1, 14)])
def test_a_feed_forward_layers_expansion_runs_as_one(shape, times, kernels):
    chain, outputs = expansion(0, shape, times)
    stock, actual, names = chain.run(outputs)
    assert names == ["Pointwise"]
    close(actual, stock)


def test_resized_inputs():
    chain, outputs = expansion(0, (1, 7, 7, 16), 8)
    chain.values = {name: chain.normal((3, 4, 2, value.shape[-1])) for name, value in chain.values.items()}
    stock, actual, names = chain.run(outputs, shapes={name: value.shape for name, value in chain.values.items()})
    assert names == ["Pointwise"] and actual[0].shape == (3, 4, 2, 16)
    close(actual, stock)


def test_shapes_that_no_longer_fit_are_refused():
    chain = Chain(0, (1, 4, 4, 8))
    chain.add(chain.add_input((1, 4, 4, 8)))
    chain.prelu()
    chain.values["input_1"] = chain.normal((1, 1, 1, 8))
    with pytest.raises(RuntimeError, match="Pointwise: the shapes of a node no longer fit"):
        chain.run(shapes={"input_1": (1, 1, 1, 8)})


@pytest.mark.parametrize("channels", [64, 50])
@pytest.mark.parametrize("shifted_elsewhere", [False, True])
def test_signs_of_a_chain(channels, shifted_elsewhere, kernels):
    """Their quantizers join the chain; those of other values stay operators of their own."""
    chain = Chain(0, (2, 6, 5, channels))
    first = chain.last
    chain.prelu()
    chain.add(chain.broadcast("channels"))
    stock, _, _ = chain.run()
    words = -(-channels // 32)
    tensors = {**chain.tensors, "bits": Tensor((2, 6, 5, words), "int32"), "other": Tensor((2, 6, 5, words), "int32")}
    quantizers = [Operator("LceQuantize", [chain.last], ["bits"]), Operator("LceQuantize", [first], ["other"])]
    outputs = ["bits", "other", *([chain.last] if shifted_elsewhere else [])]
    flatbuffer = graph(tensors, [*chain.operators, *quantizers], [first], outputs)
    delegate = load_delegate(profile=True)
    interpreter = Interpreter(model_content=flatbuffer, experimental_delegates=[delegate])
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], chain.values[first])
    interpreter.invoke()
    bits, other, *shifted = [interpreter.get_tensor(it["index"]) for it in interpreter.get_output_details()]
    np.testing.assert_array_equal(bits, pack(stock[0]))
    np.testing.assert_array_equal(other, pack(chain.values[first]))
    for values in shifted:
        np.testing.assert_array_equal(values, stock[0])
    assert sorted(entry.op for entry in read_profile(delegate)) == ["LceQuantize", "Pointwise"]


def dense_convolution():
    chain = Chain(0, (1, 4, 4, 10))
    chain.mean(10)
    return chain


def lone_prelu():
    chain = Chain(0, (1, 4, 4, 10))
    chain.prelu()
    return chain


def shortcuts_of_other_shapes():
    chain = Chain(0, (1, 4, 4, 10))
    chain.append("ADD", [chain.last, chain.add_input((1, 1, 4, 10))], (1, 4, 4, 10), schema.AddOptionsT())
    return chain


def a_sum_with_an_activation():
    chain = Chain(0, (1, 4, 4, 10))
    chain.add(chain.add_input((1, 4, 4, 10)))
    chain.operators[-1].options.fusedActivationFunction = RELU
    return chain


@pytest.mark.parametrize("make", [dense_convolution, lone_prelu, shortcuts_of_other_shapes, a_sum_with_an_activation])
def test_other_nodes_are_left_to_litert(make):
    chain = make()
    if make is not lone_prelu:  # beside a node that it would run as one with
        chain.prelu()
    stock, actual, names = chain.run()
    assert names == []
    close(actual, stock)


def missing_input(chain):
    chain.operators[1].inputs[1] = None


def output_of_two_nodes(chain):
    chain.operators[1].outputs = chain.operators[0].outputs
    chain.last = chain.operators[0].outputs[0]


def output_that_is_a_constant(chain):
    chain.operators[1].outputs = [chain.operators[1].inputs[1]]
    chain.last = chain.operators[0].outputs[0]


@pytest.mark.parametrize("break_", [missing_input, output_of_two_nodes, output_that_is_a_constant])
@pytest.mark.parametrize("second", ["prelu", "add"])
def test_graphs_that_are_no_graphs_are_refused(break_, second):
    """By LiteRT or by the delegate: nothing is read or written where it mustn't be. XNNPACK crashes."""
    chain = Chain(0, (1, 9, 9, 40))
    chain.add(chain.broadcast("channels"))
    chain.prelu() if second == "prelu" else chain.add(chain.broadcast("rows"))
    break_(chain)
    with pytest.raises((RuntimeError, ValueError)):
        chain.run(xnnpack=False)


def test_operators_in_the_wrong_order_run_in_the_right_one():
    chain = Chain(0, (1, 9, 9, 40))
    chain.add(chain.broadcast("channels"))
    chain.prelu()
    stock, _, _ = chain.run()
    chain.operators.reverse()
    _, actual, _ = chain.run()
    close(actual, stock)


def test_shapes_follow_the_inputs_whatever_the_file_says():
    chain = Chain(0, (1, 9, 9, 40))
    chain.add(chain.broadcast("channels"))
    chain.prelu()
    chain.tensors[chain.operators[0].outputs[0]].shape = (1, 1, 1, 3)
    stock, actual, _ = chain.run()
    close(actual, stock)


def test_numbers_that_are_not_finite():
    """As NumPy has them: LiteRT without XNNPACK replaces infinities by the largest number."""
    chain = Chain(0, (1, 2, 2, 40))
    x = chain.values[chain.last]
    x[0, 0, 0, :4] = np.nan, np.inf, -np.inf, -0.0
    chain.add(chain.broadcast("channels"))
    chain.prelu()
    shift, slope = (tensor.data for tensor in chain.tensors.values() if tensor.data is not None)
    _, (actual,), names = chain.run()
    assert names == ["Pointwise"]
    np.testing.assert_array_equal(actual, np.where(x + shift < 0, (x + shift) * slope, x + shift))
