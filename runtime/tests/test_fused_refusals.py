"""What is wrong with a fused operator's node is said, by the operator's name and the reason; nothing crashes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Tensor, options, run, single_op

X = (1, 4, 4, 40)  # of all cases: ragged, two words


def computed(*shape, dtype="float32"):
    return Tensor(shape, dtype)


def reals(*shape):
    return Tensor(shape, "float32", np.ones(shape, np.float32))


def words(*shape):
    return Tensor(shape, "int32", np.ones(shape, np.int32))


# Each case has its inputs by name, its output and its options; tests change one of them.
CASES = {
    "BinaryVitFeedForward": (
        {
            "input": computed(*X),
            "kernel_1": words(80, 2),
            "hidden": reals(4, 80),
            "kernel_2": words(40, 3),
            "parameters": reals(7, 40),
            "residual": computed(*X),
        },
        computed(*X),
        {"residual": 1},
    ),
    "BinaryVitAttention": (
        {
            "input": computed(*X),
            "kernels": words(5, 40, 2),
            "parameters": reals(29, 40),
            "probability_threshold": reals(1),
        },
        computed(*X),
        {"heads": 2, "reduction": 2, "residual": 1},
    ),
    "BinaryVitPooling": (
        {"input": computed(*X), "parameters": reals(8, 40)},
        computed(*X),
        {"vertical": 2, "residual": 1},
    ),
    "BinaryVitPatchMerging": (
        {"input": computed(*X), "kernel": words(80, 8), "parameters": reals(2, 40), "outputs": reals(3, 80)},
        computed(1, 2, 2, 80),
        {},
    ),
}


def model(name, inputs=None, output=None, content=None, **changes):
    """Returns a case's flatbuffer with other inputs, output or options; an option of `None` isn't there."""
    own_inputs, own_output, own_options = CASES[name]
    values = {key: value for key, value in (own_options | changes).items() if value is not None}
    content = options(**values) if content is None else content
    return single_op(name, list((own_inputs | (inputs or {})).values()), output or own_output, content)


def assert_refused(flatbuffer, *messages):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run(flatbuffer)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_the_cases_themselves_run(name):
    inputs, output, _ = CASES[name]
    values = [np.ones(x.shape, np.float32) for x in inputs.values() if x.data is None]
    assert run(model(name), *values).shape == output.shape


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("change", ["one less", "one more", "none"])
def test_wrong_counts_are_refused(name, change):
    inputs, output, attributes = CASES[name]
    tensors = {"one less": list(inputs.values())[:-1], "one more": [*inputs.values(), reals(1)], "none": []}[change]
    count = f"takes {len(inputs)} inputs and 1 outputs, but the node has {len(tensors)} and 1"
    assert_refused(single_op(name, tensors, output, options(**attributes)), f"{name}: {count}")


INPUTS = [(name, role) for name, (inputs, _, _) in CASES.items() for role in inputs]


@pytest.mark.parametrize("name, role", INPUTS)
def test_inputs_of_another_type_are_refused(name, role):
    tensor = CASES[name][0][role]
    other = "float32" if tensor.dtype == "int32" else "int32"
    data = None if tensor.data is None else np.ones(tensor.shape, other)
    changed = model(name, {role: Tensor(tensor.shape, other, data)})
    assert_refused(changed, f"{name}: the {role} must be {tensor.dtype}, but is {other}")


@pytest.mark.parametrize("name, role", INPUTS)
def test_inputs_that_are_left_out_are_refused(name, role):
    assert_refused(model(name, {role: None}), f"{name}: the {role} is missing")


@pytest.mark.parametrize("name, role", INPUTS)
def test_inputs_of_another_rank_are_refused(name, role):
    tensor = CASES[name][0][role]
    shape = (1, *tensor.shape)
    data = None if tensor.data is None else tensor.data.reshape(shape)
    changed = model(name, {role: Tensor(shape, tensor.dtype, data)})
    if (name, role) == ("BinaryVitFeedForward", "input"):
        assert_refused(changed, f"{name}: the input must have 2 to 4 dimensions, but has 5")
    else:
        assert_refused(changed, f"{name}: the {role} must have {len(tensor.shape)} dimensions, but has {len(shape)}")


CONSTANTS = [(name, role) for name, role in INPUTS if CASES[name][0][role].data is not None]


@pytest.mark.parametrize("name, role", CONSTANTS)
def test_constants_that_are_computed_are_refused(name, role):
    tensor = CASES[name][0][role]
    assert_refused(model(name, {role: Tensor(tensor.shape, tensor.dtype)}), f"{name}: the {role} must be a constant")


@pytest.mark.parametrize("name, role", CONSTANTS)
def test_constants_shorter_than_their_shape_are_refused(name, role):
    """By LiteRT itself, or by the operator."""
    tensor = CASES[name][0][role]
    assert_refused(model(name, {role: Tensor(tensor.shape, tensor.dtype, tensor.data.tobytes()[:-4])}))


@pytest.mark.parametrize("name, role", CONSTANTS)
@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_constants_of_another_shape_are_refused(name, role, change, axis):
    tensor = CASES[name][0][role]
    if axis >= len(tensor.shape):
        return
    shape = list(tensor.shape)
    shape[axis] += change
    if 0 in shape:
        return
    data = np.ones(shape, tensor.data.dtype)
    if (name, role, axis) == ("BinaryVitPooling", "parameters", 0):  # its horizontal reach is what the rows leave
        values = np.ones(X, np.float32)
        assert run(model(name, {role: Tensor(tuple(shape), tensor.dtype, data)}), values).shape == X
        return
    assert_refused(model(name, {role: Tensor(tuple(shape), tensor.dtype, data)}), f"{name}: ")


OPTIONS = [(name, option) for name, (_, _, attributes) in CASES.items() for option in attributes]


@pytest.mark.parametrize("name, option", OPTIONS)
def test_wrong_options_are_refused(name, option):
    missing = f"{name}: its options have no integer '{option}'"
    assert_refused(model(name, **{option: None}), missing)
    assert_refused(model(name, **{option: "1"}), missing)
    assert_refused(model(name, **{option: 1.0}), missing)
    for value in (-1, 2**31, 2**40, -(2**63)):
        assert_refused(model(name, **{option: value}), f"{name}: option '{option}' must be between", f"but is {value}")
    assert_refused(model(name, content=b""), f"{name}: its options are no flexbuffer map")


ATTENTION, FEED_FORWARD = "BinaryVitAttention", "BinaryVitFeedForward"
POOLING, MERGING = "BinaryVitPooling", "BinaryVitPatchMerging"
REFUSED = {
    "no heads": (model(ATTENTION, heads=0), ATTENTION, "option 'heads' must be between 1 and"),
    "heads that don't divide": (model(ATTENTION, heads=3), ATTENTION, "3 heads don't divide 40 channels"),
    "more heads than channels": (model(ATTENTION, heads=80), ATTENTION, "80 heads don't divide 40 channels"),
    "no reduction": (model(ATTENTION, reduction=0), ATTENTION, "option 'reduction' must be between 1 and"),
    "reduction that doesn't divide": (
        model(ATTENTION, reduction=3),
        ATTENTION,
        "a reduction of 3 doesn't divide the map of 4 x 4",
    ),
    "reduction that overflows": (
        model(ATTENTION, reduction=2**31 - 1),
        ATTENTION,
        "a reduction of 2147483647 doesn't divide the map of 4 x 4",
    ),
    "reduced kernel left out": (
        model(ATTENTION, {"kernels": words(4, 40, 2), "parameters": reals(25, 40)}),
        ATTENTION,
        "dimension 0 of the kernels must be 5, but is 4",
    ),
    "reduced kernel without a reduction": (
        model(ATTENTION, reduction=1),
        ATTENTION,
        "dimension 0 of the kernels must be 4, but is 5",
    ),
    "kernels of fewer words": (
        model(ATTENTION, {"kernels": words(5, 40, 1)}),
        ATTENTION,
        "dimension 2 of the kernels must be 2, but is 1",
    ),
    "residual that is neither 0 nor 1": (
        model(ATTENTION, residual=2),
        ATTENTION,
        "option 'residual' must be between 0 and 1, but is 2",
    ),
    "a map that is empty": (
        model(ATTENTION, {"input": computed(1, 0, 4, 40)}),
        ATTENTION,
        "every dimension of the input must be 1 or more, but dimension 1 is 0",
    ),
    "a map of more keys than memory": (
        model(ATTENTION, {"input": computed(1, 2**12, 2**12, 40)}, reduction=2),
        ATTENTION,
        "needs more memory than there is, or more than 256 MiB in one piece",
    ),
    "hidden units that are no multiple": (
        model(FEED_FORWARD, {"kernel_1": words(79, 2)}),
        FEED_FORWARD,
        "79 hidden units are no multiple of 40 channels",
    ),
    "more channels than hidden units": (
        model(FEED_FORWARD, {"kernel_1": words(20, 2)}),
        FEED_FORWARD,
        "20 hidden units are no multiple of 40 channels",
    ),
    "an expansion of 2^22": (  # a little more, so that it is too much for vectors of four values as well
        model(
            FEED_FORWARD,
            {
                "input": computed(4, 1),
                "kernel_1": words(2**22 + 32, 1),
                "hidden": reals(4, 2**22 + 32),
                "kernel_2": words(1, 2**17 + 1),
                "parameters": reals(7, 1),
                "residual": computed(4, 1),
            },
        ),
        FEED_FORWARD,
        "needs more memory than there is, or more than 256 MiB in one piece",
    ),
    "residual of another shape": (
        model(FEED_FORWARD, {"residual": computed(1, 4, 2, 40)}),
        FEED_FORWARD,
        "the residual must have the shape of the input",
    ),
    "residual that the option denies": (
        model(FEED_FORWARD, residual=0),
        FEED_FORWARD,
        "takes 5 inputs and 1 outputs, but the node has 6 and 1",
    ),
    "input of rank 1": (
        model(FEED_FORWARD, {"input": computed(40)}),
        FEED_FORWARD,
        "the input must have 2 to 4 dimensions, but has 1",
    ),
    "reach beyond the parameters": (
        model(POOLING, vertical=5),
        POOLING,
        "the parameters must have 9 to 73 rows, but have 8",
    ),
    "reach beyond 64": (model(POOLING, vertical=65), POOLING, "option 'vertical' must be between 0 and 64, but is 65"),
    "horizontal reach beyond 64": (
        model(POOLING, {"parameters": reals(71, 40)}),
        POOLING,
        "the parameters must have 6 to 70 rows, but have 71",
    ),
    "odd height": (model(MERGING, {"input": computed(1, 3, 4, 40)}), MERGING, "the map has odd sides, 3 x 4"),
    "odd width": (model(MERGING, {"input": computed(1, 4, 5, 40)}), MERGING, "the map has odd sides, 4 x 5"),
    "units that are no multiple": (
        model(MERGING, {"kernel": words(79, 8)}),
        MERGING,
        "79 units are no multiple of 40 channels",
    ),
}
for fused in CASES:
    REFUSED[f"{fused} of integers"] = (
        model(fused, output=computed(*CASES[fused][1].shape, dtype="int32")),
        fused,
        "the output must be float32, but is int32",
    )


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_models_are_refused_by_name_and_reason(name):
    flatbuffer, operator, message = REFUSED[name]
    assert_refused(flatbuffer, f"{operator}: ", message)


@settings(max_examples=100)
@given(data=st.data())
def test_random_sizes_run_or_are_refused(data):
    name = data.draw(st.sampled_from(list(CASES)))
    role = data.draw(st.sampled_from(list(CASES[name][0])))
    tensor = CASES[name][0][role]
    sizes = st.integers(1, 9) | st.sampled_from([16, 20, 32, 40, 80])
    shape = tuple(data.draw(st.lists(sizes, min_size=len(tensor.shape), max_size=len(tensor.shape))))
    constant = None if tensor.data is None else np.ones(shape, tensor.data.dtype)
    inputs = {role: Tensor(shape, tensor.dtype, constant)}
    values = [np.ones(x.shape, np.float32) for x in (CASES[name][0] | inputs).values() if x.data is None]
    try:
        assert np.isfinite(run(model(name, inputs), *values)).all()
    except RuntimeError as error:
        assert f"{name}: " in str(error)
