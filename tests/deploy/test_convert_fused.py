"""convert(ops="fused"): what the file holds, and what binaryvit-runtime computes of it."""

import os
import subprocess
import sys
import textwrap

import fused_reference
import keras
import numpy as np
import parity
import pytest
from deploy_checks import functional, images, pyramid, sample_errors
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from layer_checks import float64, numpy, randomize
from requirements import needs_interpreter, needs_runtime

import keras_binaryvit as kb
from keras_binaryvit.deploy import flatbuffer as tflite
from keras_binaryvit.deploy import interpreters, runtime_layers
from keras_binaryvit.deploy.float16 import with_float16_constants
from keras_binaryvit.deploy.verify import first_difference

flexbuffers = pytest.importorskip("flatbuffers.flexbuffers")
if keras.backend.backend() != "tensorflow":
    pytest.skip("these conversions run in this process, which needs the TensorFlow backend", allow_module_level=True)
pytestmark = needs_interpreter

BLOCK = {"BinaryVitAttention": 1, "BinaryVitPooling": 1, "BinaryVitFeedForward": 1}


@pytest.fixture(scope="module")
def model():
    return pyramid()


@pytest.fixture(scope="module")
def flatbuffer(model):
    return kb.deploy.convert(model, "fused")


@pytest.fixture(scope="module")
def x(model):
    return images(model)


def operators(flatbuffer):
    return {operator.name: operator for operator in tflite.read(flatbuffer).operators}


def array(tensor):
    return np.frombuffer(tensor.data, {"float32": "<f4", "int32": "<i4"}[tensor.dtype]).reshape(tensor.shape)


def options(operator):
    return flexbuffers.Loads(bytes(operator.options))


# --- What the file holds, computed from the training model's variables ---


def batch_norm(layer):
    """Returns the factor and the addend of a batch normalization."""
    scale = float64(layer.gamma) / np.sqrt(float64(layer.moving_variance) + layer.epsilon)
    return scale, float64(layer.beta) - float64(layer.moving_mean) * scale


def signs(kernel, centered=True):
    kernel = numpy(kernel)
    return (kernel - kernel.mean(0) if centered else kernel) < 0


def projection(layer):
    """Returns multiplier and bias of the count of differing bits, without what is moved there from elsewhere."""
    kernel = float64(layer.dense.kernel)
    scale, shift = batch_norm(layer.norm)
    magnitude = np.abs(kernel).mean(0)
    bias = len(kernel) * magnitude * scale + shift - float64(layer.activation.input_shift)
    return -2 * magnitude * scale, bias


def test_feed_forward():
    norm = keras.layers.BatchNormalization()
    layer = kb.layers.BinaryFeedForward(3)
    affine = kb.layers.ResidualAffine()
    flatbuffer = kb.deploy.convert(functional((4, 5, 40), lambda x: affine(layer(norm(x)))), "fused")
    assert kb.deploy.count_operators(flatbuffer) == {"BinaryVitFeedForward": 1}
    operator = operators(flatbuffer)["BinaryVitFeedForward"]
    assert options(operator) == {"residual": 0}
    assert [(tensor.shape, tensor.dtype) for tensor in (*operator.inputs, *operator.outputs)] == [
        ((1, 4, 5, 40), "float32"),
        ((120, 2), "int32"),
        ((4, 120), "float32"),
        ((40, 4), "int32"),
        ((7, 40), "float32"),
        ((1, 4, 5, 40), "float32"),
    ]
    _, kernel_1, hidden, kernel_2, parameters = operator.inputs
    np.testing.assert_array_equal(
        fused_reference.unpacked(array(kernel_1), 64)[:, :40], signs(layer.expand.dense.kernel).T
    )
    assert not fused_reference.unpacked(array(kernel_1), 64)[:, 40:].any()
    np.testing.assert_array_equal(
        fused_reference.unpacked(array(kernel_2), 128)[:, :120], signs(layer.reduce.dense.kernel).T
    )

    scale, shift = batch_norm(norm)
    multiplier_1, bias_1 = projection(layer.expand)
    multiplier_2, bias_2 = projection(layer.reduce)
    expand, reduce = layer.expand.activation, layer.reduce.activation
    expected = [
        multiplier_1,
        bias_1 + np.concatenate([shift] * 3),
        float64(expand.slope),
        float64(layer.reduce.shift.shift) + float64(expand.output_shift),
    ]
    np.testing.assert_allclose(array(hidden), expected, rtol=1e-6)
    means = np.add.reduceat(float64(expand.output_shift), range(0, 120, 3)) / 3
    factor, addend = float64(affine.scale), float64(affine.shift)
    expected = [
        scale,
        shift + float64(layer.expand.shift.shift),
        multiplier_2,
        bias_2 + means,
        float64(reduce.slope),
        factor,
        factor * float64(reduce.output_shift) + addend,
    ]
    np.testing.assert_allclose(array(parameters), expected, rtol=1e-6)


def test_attention():
    layer = kb.layers.BinarySelfAttention(2, 2)
    flatbuffer = kb.deploy.convert(functional((4, 6, 40), layer), "fused")
    operator = operators(flatbuffer)["BinaryVitAttention"]
    assert options(operator) == {"heads": 2, "reduction": 2, "residual": 0}
    _, kernels, parameters, threshold = operator.inputs
    assert kernels.shape == (5, 40, 2) and parameters.shape == (29, 40) and threshold.shape == (1,)
    projections = [layer.query, layer.key, layer.value, layer.output_projection, layer.reduced]
    for bits, trained in zip(fused_reference.unpacked(array(kernels), 40), projections, strict=True):
        np.testing.assert_array_equal(bits, signs(trained.dense.kernel).T)
    table = array(parameters)
    for index, trained in zip((1, 5, 9, 13, 25), projections, strict=True):
        np.testing.assert_allclose(table[index + 1], projection(trained)[0], rtol=1e-6)
        np.testing.assert_array_equal(table[index + 3], numpy(trained.activation.slope))
    np.testing.assert_array_equal(table[0], 1)
    np.testing.assert_array_equal(table[23], 1)  # nothing after it scales the output
    np.testing.assert_array_equal(table[24], numpy(layer.output_projection.activation.output_shift))
    np.testing.assert_allclose(array(threshold), 0.025)


def test_a_block_has_three():
    block = kb.layers.BinaryTransformerBlock(2, 2, 2)
    flatbuffer = kb.deploy.convert(functional((4, 4, 32), block), "fused")
    assert kb.deploy.count_operators(flatbuffer) == BLOCK
    found = operators(flatbuffer)
    attention, pooling, feed_forward = (found[name] for name in BLOCK)
    assert [options(operator)["residual"] for operator in (attention, pooling, feed_forward)] == [1, 1, 1]
    assert options(pooling)["vertical"] == 2
    assert pooling.inputs[0] is feed_forward.inputs[0] is attention.outputs[0]
    assert feed_forward.inputs[5] is pooling.outputs[0]
    scale, shift = batch_norm(block.feed_forward_norm)
    weights = [
        float64(affine.scale) / (h * w)
        for (h, w), affine in zip(block.branches.windows, block.branches.affines, strict=True)
    ]
    bias = sum(float64(affine.shift) for affine in block.branches.affines)
    vertical, horizontal, wide_vertical, wide_horizontal = weights
    expected = [
        scale,
        shift,
        bias,
        sum(weights),
        vertical + wide_vertical,
        wide_vertical,
        horizontal + wide_horizontal,
        wide_horizontal,
    ]
    np.testing.assert_allclose(array(pooling.inputs[1]), expected, rtol=1e-5, atol=1e-7)


def test_patch_merging():
    layer = kb.layers.PatchMerging(80)
    flatbuffer = kb.deploy.convert(functional((4, 4, 40), layer), "fused")
    assert kb.deploy.count_operators(flatbuffer) == {"BinaryVitPatchMerging": 1, "ADD": 1}
    _, kernel, parameters, outputs = operators(flatbuffer)["BinaryVitPatchMerging"].inputs
    bits = fused_reference.unpacked(array(kernel).reshape(80, 4, 2), 40)
    np.testing.assert_array_equal(
        bits.reshape(80, 2, 2, 40), signs(layer.convolution.kernel, False).transpose(3, 0, 1, 2)
    )
    scale, shift = batch_norm(layer.input_norm)
    np.testing.assert_allclose(array(parameters), [scale, shift + float64(layer.shift.shift)], rtol=1e-6)
    magnitude = np.abs(float64(layer.convolution.kernel)).mean((0, 1, 2))
    factor, addend = batch_norm(layer.norm)
    bias = 160 * magnitude * factor + addend - float64(layer.activation.input_shift) + np.tile(shift, 2)
    expected = [-2 * magnitude * factor, bias, float64(layer.activation.slope)]
    np.testing.assert_allclose(array(outputs), expected, rtol=1e-6)


def test_operators_and_their_names(model, flatbuffer):
    assert kb.deploy.count_operators(flatbuffer) == {
        **{name: 2 for name in BLOCK},
        **{"BinaryVitPatchMerging": 1, "ADD": 2, "CONV_2D": 1, "MEAN": 1, "FULLY_CONNECTED": 1},
    }
    inspection = kb.deploy.inspect(flatbuffer)
    frozen = kb.deploy.freeze(model, "fused")
    origins = [operator.origin.replace("/", "-") for operator in inspection.operators]
    assert {layer.name for layer in runtime_layers.fused_layers(frozen)} < set(origins)
    assert len(set(origins)) == len(origins)


def test_costs(model, flatbuffer):
    """As many products of bits as the training model has, and the signs of its kernels."""
    inspection = kb.deploy.inspect(flatbuffer)
    profile = kb.profile.summary(model, print_fn=lambda text: None)
    assert inspection.total.binary_multiply_adds == profile.macs[1]
    assert inspection.total.kernel_values == profile.parameters[1]
    quantized = [
        layer for layer in model._flatten_layers() if isinstance(layer, kb.layers.QuantDense | kb.layers.QuantConv2D)
    ]
    ones = sum(np.sum(numpy(layer.quantized_kernel()[0]) > 0) for layer in quantized)
    assert inspection.total.kernel_plus_ones == ones
    # Of a window of 5 in both directions: the center, and two distances each way.
    assert inspection.by_name()["BinaryVitPooling"].float_multiply_adds == (8 * 8 * 16 + 4 * 4 * 32) * 5
    kernels = sum(
        4 * tensor.size
        for operator in tflite.read(flatbuffer).operators
        for tensor in operator.inputs
        if operator.name in runtime_layers.OPERATORS and tensor.dtype == "int32"
    )
    assert inspection.constant_bytes["int32, bit-packed"] == kernels
    frozen = kb.profile.summary(kb.deploy.freeze(model, "fused"), print_fn=lambda text: None)
    assert frozen.macs[1] == profile.macs[1] and frozen.parameters[1] == profile.parameters[1]
    assert not frozen.uncounted


def damaged(flatbuffer, name, change):
    """Returns the flatbuffer after `change(operator, tensor)`, of the first operator `name` and its first constant."""
    model = tflite.unpack(flatbuffer)
    code = [code.customCode for code in model.operatorCodes].index(name.encode())
    operator = next(operator for operator in model.subgraphs[0].operators if operator.opcodeIndex == code)
    change(operator, model.subgraphs[0].tensors[operator.inputs[1]])
    return tflite.pack(model)


def without_constants(operator, tensor):
    operator.inputs = operator.inputs[:1]


def wide_kernel(operator, tensor):
    tensor.shape = [*tensor.shape[:-1], tensor.shape[-1] + 1]


def flat_kernel(operator, tensor):
    tensor.shape = [4]


def no_reduction(operator, tensor):
    operator.customOptions = np.frombuffer(flexbuffers.Dumps({"reduction": 0}), np.uint8)


@pytest.mark.parametrize(
    "name, change",
    [
        ("BinaryVitAttention", without_constants),
        ("BinaryVitAttention", wide_kernel),
        ("BinaryVitAttention", flat_kernel),
        ("BinaryVitAttention", no_reduction),
        ("BinaryVitFeedForward", without_constants),
        ("BinaryVitFeedForward", wide_kernel),
        ("BinaryVitPatchMerging", wide_kernel),
        ("BinaryVitPooling", without_constants),
    ],
)
def test_damaged_operators(flatbuffer, name, change):
    with pytest.raises(ValueError, match="damaged"):
        kb.deploy.inspect(damaged(flatbuffer, name, change))


def test_a_lost_layer_is_an_error(model, monkeypatch):
    block = kb.deploy.convert(functional((4, 4, 32), kb.layers.BinaryTransformerBlock(2, 2, 2)), "fused")
    monkeypatch.setattr("keras_binaryvit.deploy.flatbuffer.pack", lambda file: block)
    with pytest.raises(kb.deploy.ConversionError, match="2 different layers that are BinaryVitAttention, .* has 1"):
        kb.deploy.convert(model, "fused")


def test_what_has_no_operator_is_converted_for_lce():
    flatbuffer = kb.deploy.convert(kb.DeiT((8, 8, 3), 5, 4, 16, 1, 2, 2), "fused")
    assert not interpreters.is_fused(flatbuffer)
    layer = kb.layers.QuantConv2D(32, 3, input_quantizer="ste_sign", kernel_quantizer="ste_sign")
    flatbuffer = kb.deploy.convert(functional((5, 5, 32), lambda x: kb.layers.BinaryFeedForward(2)(layer(x))), "fused")
    ops = kb.deploy.count_operators(flatbuffer)
    assert ops["LceBconv2d"] == ops["BinaryVitFeedForward"] == 1


# --- float16 constants ---


def test_float16_constants(model, flatbuffer):
    """Position embeddings here; the fused operators' tables, of the same sizes, stay as they are."""
    large = functional(
        (16, 16, 3),
        lambda x: keras.layers.Dense(300)(
            keras.layers.Flatten()(model.get_layer("block_0")(kb.layers.PatchEmbedding(16, 2)(x)))
        ),
    )
    plain, half = (kb.deploy.convert(large, "fused", float16_constants=value) for value in (False, True))
    ops = kb.deploy.count_operators(half)
    assert ops == {**kb.deploy.count_operators(plain), "DEQUANTIZE": 2}
    constants = {
        operator.outputs[0].name: operator.inputs[0]
        for operator in tflite.read(half).operators
        if operator.name == "DEQUANTIZE"
    }
    expected = {
        tensor.name: array(tensor)
        for operator in tflite.read(plain).operators
        if operator.name in ("ADD", "FULLY_CONNECTED")
        for tensor in operator.inputs
        if tensor and tensor.data and tensor.size >= 1024
    }
    assert set(constants) == set(expected)
    for name, values in expected.items():
        tensor = constants[name]
        assert tensor.dtype == "float16" and tensor.shape == values.shape
        np.testing.assert_array_equal(np.frombuffer(tensor.data, "<f2").reshape(values.shape), values.astype("<f2"))
    saved = 2 * sum(values.size for values in expected.values())
    assert saved - 2000 < len(plain) - len(half) <= saved
    for name in BLOCK:
        old, new = operators(plain)[name], operators(half)[name]
        assert [bytes(tensor.data) for tensor in old.inputs] == [bytes(tensor.data) for tensor in new.inputs]


def test_float16_constants_for_lce(x):
    large = pyramid(num_classes=40)
    flatbuffer = kb.deploy.convert(large, float16_constants=True)
    assert kb.deploy.count_operators(flatbuffer)["DEQUANTIZE"] == 2  # a position embedding and the head
    expected = numpy(large(x, training=False))
    errors = sample_errors(kb.deploy.run(flatbuffer, x), expected)
    assert np.median(errors) < 2e-3  # a flipped bit may change a single image more


def test_constants_are_aligned(flatbuffer):
    """Kernels may read whole vectors of them."""
    for operator in tflite.read(flatbuffer).operators:
        for tensor in operator.inputs:
            if tensor.data and len(tensor.data) >= 16:
                start = np.frombuffer(tensor.data, np.uint8).__array_interface__["data"][0]
                base = np.frombuffer(tensor.data.obj, np.uint8).__array_interface__["data"][0]
                assert (start - base) % 16 == 0


def test_nothing_to_store_as_float16(flatbuffer):
    small = kb.deploy.convert(functional((4, 4, 8), kb.layers.BinaryFeedForward(2)), "fused")
    assert with_float16_constants(small) == small


def test_values_that_float16_has_not():
    dense = keras.layers.Dense(64)
    model = functional((64,), dense)
    dense.bias.assign(np.full(64, 7e4))
    kb.deploy.convert(model, float16_constants=True)  # small, and stays float32
    dense.kernel.assign(np.full((64, 64), -7e4))
    with pytest.raises(ValueError, match="7e.04; float16 ends at 65504"):
        kb.deploy.convert(model, float16_constants=True)


# --- The values, in binaryvit-runtime ---


def assert_runs(model):
    flatbuffer, frozen = kb.deploy.convert(model, "fused"), kb.deploy.freeze(model, "fused")
    x = images(model, 4)
    actual, expected = kb.deploy.run(flatbuffer, x), numpy(frozen(x))
    np.testing.assert_array_equal(actual.reshape(expected.shape), expected)


examples = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@needs_runtime
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([4, 32, 33]),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 5),
    st.booleans(),
)
@examples
def test_blocks(height, width, head_dim, heads, reduction, expansion, branches):
    block = kb.layers.BinaryTransformerBlock(heads, reduction, expansion, use_pooling_branches=branches)
    assert_runs(functional((height * reduction, width * reduction, heads * head_dim), block))


@needs_runtime
@pytest.mark.parametrize(
    "shape, layer",
    [
        ((70,), lambda: kb.layers.BinaryFeedForward(3)),
        ((7, 64), lambda: kb.layers.BinaryFeedForward(1)),
        ((8, 8, 64), lambda: kb.layers.BinaryFeedForward(8)),
        ((7, 7, 128), lambda: kb.layers.BinarySelfAttention(2)),
        ((2, 1, 9), kb.layers.MultiBranchAveragePooling),
        ((5, 9, 16), lambda: kb.layers.MultiBranchAveragePooling(((1, 7), (3, 1)))),
        ((4, 6, 40), lambda: kb.layers.PatchMerging(80)),
    ],
)
def test_single_layers(shape, layer):
    assert_runs(functional(shape, layer()))


@needs_runtime
@pytest.mark.parametrize("side, fused", [(129, True), (131, False)])
def test_windows_beyond_the_operators_reach(side, fused):
    model = randomize(functional((3, 2, 8), kb.layers.MultiBranchAveragePooling(((1, side), (side, 1)))))
    flatbuffer = kb.deploy.convert(model, "fused")
    assert interpreters.is_fused(flatbuffer) == fused
    x = images(model, 1)
    np.testing.assert_allclose(kb.deploy.run(flatbuffer, x), numpy(model(x)), rtol=1e-5, atol=1e-5)


@needs_runtime
@pytest.mark.parametrize("name", parity.RECORDINGS[:3])
def test_equals_the_authors_recordings(name):
    recording = parity.Recording(name)
    flatbuffer = kb.deploy.convert(recording.model(), "fused")
    assert interpreters.is_fused(flatbuffer)
    actual = kb.deploy.run(flatbuffer, recording.images)
    assert parity.relative_error(actual, recording.arrays["eval/logits"]) < 1e-5


@needs_runtime
def test_verify_inspect_and_report(model, flatbuffer, x):
    result = kb.deploy.verify(model, flatbuffer, x)
    assert result.agreement == 1 and result.largest_difference < 1e-5
    assert first_difference(model, flatbuffer, x[0]) is None
    page = kb.deploy.report(model, flatbuffer, x, result, runs=1)
    assert "BinaryVitAttention" in page and "/attention/selfattention" in page
    other = pyramid()
    norm = other.get_layer("block_0").feed_forward.reduce.norm
    norm.gamma.assign(norm.gamma * 1.5)
    assert first_difference(other, flatbuffer, x[0]).startswith("block_0-feed_forward-feedforward: ")


def test_without_the_runtime(model, flatbuffer, x, monkeypatch):
    monkeypatch.setitem(sys.modules, "binaryvit_runtime", None)
    with pytest.raises(ImportError, match="pip install ./runtime"):
        kb.deploy.verify(model, flatbuffer, x)


@needs_runtime
def test_command_line(model, run_converter, tmp_path):
    model.save(tmp_path / "model.keras")
    output = tmp_path / "model.tflite"
    arguments = ["--ops", "fused", "--float16-constants", "--images", 4]
    out = run_converter("to_lce.py", tmp_path / "model.keras", output, *arguments)
    assert "2 BinaryVitAttention" in out and "agreement" in out
    assert kb.deploy.count_operators(output.read_bytes())["DEQUANTIZE"] == 1


@pytest.mark.once
def test_conversion_on_jax_gives_the_same_file(tmp_path):
    pytest.importorskip("jax", reason="JAX isn't installed")
    model = functional((4, 4, 40), kb.layers.BinaryFeedForward(2))
    model.save(tmp_path / "model.keras")
    code = """
        import keras, keras_binaryvit as kb
        model = keras.saving.load_model("model.keras")
        open("jax.tflite", "wb").write(kb.deploy.convert(model, "fused"))
    """
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, env=environment, check=True)
    ours, theirs = (
        operators(file) for file in (kb.deploy.convert(model, "fused"), (tmp_path / "jax.tflite").read_bytes())
    )
    assert set(ours) == set(theirs) == {"BinaryVitFeedForward"}
    for a, b in zip(ours["BinaryVitFeedForward"].inputs[1:], theirs["BinaryVitFeedForward"].inputs[1:], strict=True):
        np.testing.assert_allclose(array(a), array(b), rtol=1e-6)
