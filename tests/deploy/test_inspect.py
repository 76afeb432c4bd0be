import keras
import numpy as np
import pytest
from requirements import needs_interpreter
from test_flatbuffer import build

import keras_binaryvit as kb
from keras_binaryvit.deploy.inspect import Cost, inspect

flexbuffers = pytest.importorskip("flatbuffers.flexbuffers", reason="flatbuffers isn't installed")


def floats(*shape):
    return np.zeros(shape, "float32")


def options(channels):
    return flexbuffers.Dumps({"channels_in": channels, "padding": 1})


def only(flatbuffer):
    (operator,) = inspect(flatbuffer).operators
    return operator


@pytest.mark.parametrize(
    "name, input_shapes, output_shape, expected",
    [
        # For each output: the kernel's height x width x the channels that it sums.
        ("CONV_2D", [(1, 8, 8, 6), (10, 3, 5, 6), (10,)], (1, 4, 4, 10), 4 * 4 * 10 * 3 * 5 * 6),
        ("CONV_2D", [(1, 8, 8, 6), (10, 3, 5, 2)], (1, 4, 4, 10), 4 * 4 * 10 * 3 * 5 * 2),  # three groups
        ("DEPTHWISE_CONV_2D", [(2, 8, 8, 6), (1, 3, 5, 12)], (2, 4, 4, 12), 2 * 4 * 4 * 12 * 3 * 5),
        ("FULLY_CONNECTED", [(7, 3, 6), (10, 6)], (7, 3, 10), 7 * 3 * 10 * 6),
        ("BATCH_MATMUL", [(5, 2, 6), (5, 6, 4)], (5, 2, 4), 5 * 2 * 4 * 6),
        ("BATCH_MATMUL", [(5, 6, 2), (5, 6, 4)], (5, 2, 4), 5 * 2 * 4 * 6),  # the left one transposed
        # Each input is multiplied with a whole kernel.
        ("TRANSPOSE_CONV", [(4,), (10, 3, 5, 6), (1, 4, 4, 6)], (1, 8, 8, 10), 4 * 4 * 6 * 10 * 3 * 5),
        ("ADD", [(1, 8, 8, 6), (1, 8, 8, 6)], (1, 8, 8, 6), 0),
        ("MyOwn", [(1, 8, 8, 6)], (1, 8, 8, 6), 0),
    ],
)
def test_float_multiply_adds(name, input_shapes, output_shape, expected):
    tensors = [(f"x{i}", shape, "float32", None) for i, shape in enumerate(input_shapes)]
    tensors.append(("y", output_shape, "float32", None))
    operator = only(build(tensors, [(name, range(len(input_shapes)), (len(input_shapes),), None)]))
    assert operator.name == name
    assert operator.input_shapes == tuple(input_shapes) and operator.output_shapes == (output_shape,)
    assert operator.cost.float_multiply_adds == expected
    assert operator.cost.binary_multiply_adds == 0
    moved = 4 * (sum(map(np.prod, input_shapes)) + np.prod(output_shape))
    assert operator.cost.bytes_moved == moved and operator.cost.constant_bytes == 0


@pytest.mark.parametrize(
    "channels, words, summed",
    [(64, 2, 64), (40, 2, 40), (96, 1, 32)],  # whole words, a word with bits left over, three groups
)
@pytest.mark.parametrize("packed_output", [False, True])
def test_binary_convolution(channels, words, summed, packed_output):
    kernel = np.zeros((70, 3, 2, words), "int32")
    kernel[:35, 0, 0, 0] = -1  # 32 set bits each: -1 in 32 of each of these kernels' values
    kernel[:, 2, 1, -1] |= np.int32(-(2**31))  # the last bit, which is a channel only where none are left over
    output = ((1, 4, 5, 3), "int32") if packed_output else ((1, 4, 5, 70), "float32")
    tensors = [
        ("x", (1, 8, 8, -(-channels // 32)), "int32", None),
        ("w", kernel.shape, "int32", kernel),
        ("thresholds", (70,), "int32", np.zeros(70, "int32")),
        ("y", *output, None),
    ]
    flatbuffer = build(tensors, [("LceBconv2d", (0, 1, -1, -1, 2), (3,), options(channels))])
    cost = only(flatbuffer).cost
    assert cost.binary_multiply_adds == 4 * 5 * 70 * 3 * 2 * summed
    assert cost.float_multiply_adds == 0
    assert cost.bytes_moved == 4 * (64 * -(-channels // 32) + np.prod(output[0]))
    assert cost.constant_bytes == kernel.nbytes + 280
    assert cost.kernel_values == 70 * 3 * 2 * summed
    assert cost.kernel_values - cost.kernel_plus_ones == 35 * 32 + (70 if summed % 32 == 0 else 0)
    assert inspect(flatbuffer).constant_bytes == {"int32, bit-packed": kernel.nbytes, "int32": 280}


@pytest.fixture
def graph():
    """m/stem (a sum with a constant, twice the same) -> LceQuantize -> LceBMaxPool2d -> LceDequantize, shape."""
    constant = np.ones((1, 4, 4, 33), "float32")
    tensors = [
        ("x", (1, 4, 4, 33), "float32", None),
        ("c", (1, 4, 4, 33), "float32", constant),
        ("c_again", (1, 4, 4, 33), "float32", 1),
        ("m/stem/add", (1, 4, 4, 33), "float32", None),
        ("m/stem/add_1", (1, 4, 4, 33), "float32", None),
        ("m/pool/sign", (1, 4, 4, 2), "int32", None),
        ("m/pool/max", (1, 2, 2, 2), "int32", None),
        ("m/pool/floats", (1, 2, 2, 33), "float32", None),
        ("shape", (2,), "int64", np.array([1, 132])),
        ("m/out/flat", (1, 132), "float32", None),
    ]
    operators = [
        ("ADD", (0, 1), (3,), None),
        ("ADD", (3, 2), (4,), None),
        ("LceQuantize", (4,), (5,), None),
        ("LceBMaxPool2d", (5,), (6,), None),
        ("LceDequantize", (6,), (7,), None),
        ("RESHAPE", (7, 8), (9,), None),
    ]
    return build(tensors, operators)


MAP = 4 * 4 * 33 * 4  # bytes


def test_bytes_and_sums(graph):
    inspection = inspect(graph)
    assert inspection.by_name() == {
        "ADD": Cost(2, bytes_moved=4 * MAP, constant_bytes=2 * MAP),
        "LceQuantize": Cost(1, bytes_moved=MAP + 16 * 2 * 4),
        "RESHAPE": Cost(1, bytes_moved=2 * MAP // 4, constant_bytes=16),
        "LceDequantize": Cost(1, bytes_moved=4 * 2 * 4 + MAP // 4),
        "LceBMaxPool2d": Cost(1, bytes_moved=16 * 2 * 4 + 4 * 2 * 4),
    }
    moved = [cost.bytes_moved for cost in inspection.by_name().values()]
    assert moved == sorted(moved, reverse=True)
    assert inspection.total == Cost(6, bytes_moved=sum(moved), constant_bytes=2 * MAP + 16)
    assert {name: cost.operators for name, cost in inspection.by_origin().items()} == {"stem": 2, "pool": 3, "out": 1}
    # The shared buffer is there once.
    assert inspection.constant_bytes == {"float32": MAP, "int64": 16}
    assert inspection.file_bytes == len(graph)
    assert (inspection.input_shapes, inspection.output_shapes) == (((1, 4, 4, 33),), ((1, 132),))


def test_prints_as_tables(graph):
    text = str(inspect(graph))
    lines = [line.replace("|", " ").split() for line in text.splitlines()]
    assert text.startswith(f"{len(graph):,} bytes, 1x4x4x33 -> 1x132\n")
    assert ["ADD", "2", "8,448", "4,224", "0", "0"] in lines
    assert ["pool", "3", f"{MAP + 128 + 160 + 32 + MAP // 4:,}", "0", "0", "0"] in lines
    assert ["float32", "2,112"] in lines
    first_table = text.split("\n\n")[1].splitlines()
    assert len({len(line) for line in first_table}) == 1


def test_names_cannot_reach_the_terminal():
    flatbuffer = build([("x", (1,), "float32", None)], [("A\x1b[2J\nB", (0,), (0,), None)])
    assert "A?[2J?B" in str(inspect(flatbuffer))


@pytest.mark.parametrize(
    "names, expected",
    [
        # Keras' export: the model, its layers with _1, an operation
        (["m_1/dense_1/MatMul", "m_1/block_0_1/add", "m_1/add"], ["dense", "block_0", "m"]),
        (["m_1/block_0_1/norm_1/batchnorm/mul_1", "m_1/block_0_1/x"], ["block_0/norm", "block_0"]),
        # a model and a layer whose own names end so
        (["m_1/dense_1/MatMul", "m_1/dense/MatMul", "m_1/dense/bn/mul"], ["dense_1", "dense", "dense/bn"]),
        # several names of one fused operation
        (["m/conv/bn/mul;m/conv/Conv2D;m/conv/bias", "m/x/y"], ["conv", "x"]),
        (["m/a/mul;m/b/mul", "m/x/y;m_"], ["a", "x"]),
        # names cut short, as LCE's converter does
        (["m_1/block_0_1/attention_1/key_1/no", "m_1/block_0_1/att"], ["block_0/attention/key", "block_0"]),
        # frozen models: nested layers' names joined by dots, and one of them cut short
        (["m_1/block_0-attention-query_1/Conv2D", "m_1/block_0-attention-que", "m_1/head_1/add"],
         ["block_0/attention/query", "block_0/attention", "head"]),
        # other exporters
        (["StatefulPartitionedCall/model/conv/Relu", "model/conv2/Relu;StatefulPartitionedCall/x"], ["conv", "conv2"]),
        (["conv1/Relu", "conv2/Relu", "conv3"], ["conv1", "conv2", "conv3"]),
        (["", "/", ";;", "//a"], ["", "/", ";;", "//a"]),
    ],
)  # fmt: skip
def test_origins(names, expected):
    tensors = [("input", (1,), "float32", None), *((name, (1,), "float32", None) for name in names)]
    flatbuffer = build(tensors, [("ABS", (0,), (i + 1,), None) for i in range(len(names))])
    assert [operator.origin for operator in inspect(flatbuffer).operators] == expected


def test_origins_of_unnamed_outputs():
    """From a constant of the operator, or else from what reads its output."""
    tensors = [
        ("x", (1, 2), "float32", None),
        ("m/stem/x", (1, 2), "float32", None),
        ("fill", (1, 2), "float32", None),
        ("m/pool/x", (1, 2), "float32", None),
        ("head/kernel", (2, 2), "float32", floats(2, 2)),
        ("StatefulPartitionedCall:0", (1, 2), "float32", None),
    ]
    operators = [
        ("ABS", (0,), (1,), None),
        ("FILL", (), (2,), None),
        ("ADD", (1, 2), (3,), None),
        ("FULLY_CONNECTED", (3, 4), (5,), None),
    ]
    assert [operator.origin for operator in inspect(build(tensors, operators)).operators] == [
        "stem", "pool", "pool", "head",
    ]  # fmt: skip


def test_damaged_operators():
    tensors = [("x", (2, 2), "float32", None), ("p", (1, 1, 1, 2), "int32", None)]
    for name, inputs in [("CONV_2D", (0, 0)), ("CONV_2D", (0,)), ("FULLY_CONNECTED", (0, -1)), ("LceBconv2d", (0, 0))]:
        with pytest.raises(ValueError, match=f"a tensor of {name}"):
            inspect(build(tensors, [(name, inputs, (0,), None)]))
    for blob in [None, b"\xff" * 40, options(64)[:-9], flexbuffers.Dumps(3), flexbuffers.Dumps({"other": 1})]:
        with pytest.raises(ValueError, match="options of LceBconv2d"):
            inspect(build(tensors, [("LceBconv2d", (1, 1), (1,), blob)]))
    for channels in (0, -64, 96, 2**40):
        with pytest.raises(ValueError, match="channels has kernels of 2 words"):
            inspect(build(tensors, [("LceBconv2d", (1, 1), (1,), options(channels + 32 * (channels == 2**40)))]))
    tensors[1] = ("p", (1, 1, 1, 2), "int32", np.zeros(1, "int32"))
    with pytest.raises(ValueError, match="kernel 'p' has 4 bytes"):
        inspect(build(tensors, [("LceBconv2d", (1, 1), (1,), options(64))]))


# ---- of converted models


def pyramid_multiply_adds(image_side, patch_size, dims, depths, sr_ratios, mlp_ratios):
    """Binary multiply-adds of the pyramid with binary merging, from the paper's description alone."""
    total, side = 0, image_side // patch_size
    for stage, (dim, depth, reduction, expansion) in enumerate(zip(dims, depths, sr_ratios, mlp_ratios, strict=True)):
        if stage:
            side //= 2
            total += side**2 * dim * dims[stage - 1] * 2 * 2  # the patch merging, a 2x2 convolution
        positions, reduced = side**2, (side // reduction) ** 2
        attention = positions * 2 + reduced * (3 if reduction > 1 else 2)  # query and output; key, value, reduction
        total += depth * dim**2 * (attention + positions * 2 * expansion)
    return total


def test_the_papers_network_has_3_6_g_binary_multiply_adds():
    total = pyramid_multiply_adds(224, 4, (64, 128, 256, 512), (3, 4, 8, 4), (8, 4, 1, 1), (8, 8, 4, 4))
    assert total == 3_556_675_584


@pytest.fixture(scope="module")
def converted():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("conversion needs the TensorFlow backend")
    model = kb.BinaryViT((16, 16, 3), 5, 2, (16, 32), (1, 1), num_heads=(1, 2), sr_ratios=(2, 1), mlp_ratios=(2, 2))
    return model, kb.deploy.convert(model)


@needs_interpreter
def test_of_a_converted_model(converted):
    model, flatbuffer = converted
    inspection = inspect(flatbuffer)
    assert {name: cost.operators for name, cost in inspection.by_name().items()} == kb.deploy.count_operators(
        flatbuffer
    )
    total = inspection.total
    assert total.binary_multiply_adds == pyramid_multiply_adds(16, 2, (16, 32), (1, 1), (2, 1), (2, 2))
    # At least patch embedding, scores and context of both attentions, head; conversion may add such as pooling.
    assert total.float_multiply_adds >= 64 * 16 * 12 + 2 * 64 * 16 * 16 + 2 * 16 * 16 * 32 + 32 * 5
    assert set(inspection.by_origin(depth=1)) <= {layer.name for layer in model.layers}
    binary = {name.split("/")[0] for name, cost in inspection.by_origin().items() if cost.binary_multiply_adds}
    assert binary == {"block_0", "block_1", "patch_merging_1"}


@needs_interpreter
def test_plus_ones_are_those_of_the_kernels(converted):
    model, flatbuffer = converted
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "is_binary", False)]
    kernels = [keras.ops.convert_to_numpy(layer.quantized_kernel()[0]) for layer in layers]
    total = inspect(flatbuffer).total
    assert total.kernel_values == sum(kernel.size for kernel in kernels)
    assert total.kernel_plus_ones == sum(np.sum(kernel > 0) for kernel in kernels)


@needs_interpreter
def test_damage_to_a_converted_model(converted):
    _, flatbuffer = converted
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        try:
            str(inspect(flatbuffer[: rng.integers(len(flatbuffer))]))
        except ValueError:
            refused += 1
        damaged = np.frombuffer(flatbuffer, np.uint8).copy()
        damaged[rng.integers(len(damaged), size=30)] = rng.integers(0, 256, 30)
        try:
            str(inspect(damaged.tobytes()))
        except ValueError:
            refused += 1
    assert refused > 100
