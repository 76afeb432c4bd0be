"""export_c: headers that compile without a warning, and compute the runtime's bits here and on emulated boards."""

import re
import shutil
import subprocess
from pathlib import Path

import boards
import keras
import numpy as np
import pytest
from deploy_checks import functional, images
from golden_conversion import GOLDEN
from requirements import needs_runtime
from test_flatbuffer import build

import keras_binaryvit as kb
from keras_binaryvit.deploy import flatbuffer as flatbuffers
from keras_binaryvit.deploy.metadata import add_metadata

DOCS = Path(__file__).parents[2] / "docs"
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-pedantic", "-Werror")
CLANG = next(filter(shutil.which, ("clang", "clang-19")), "clang")
COMPILERS = {
    "gcc": ("gcc", "-std=c99", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover"),
    "gcc, this processor": ("gcc", "-std=gnu11", "-O2", "-march=native"),  # fuses products and sums where it may
    "clang": (CLANG, "-std=c99", "-O2", "-march=native"),
    "g++": ("g++", "-x", "c++", "-std=c++17", "-O1"),
}
if keras.backend.backend() != "tensorflow":
    pytest.skip("these conversions run in this process, which needs the TensorFlow backend", allow_module_level=True)
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="GCC isn't installed")
needs_boards = pytest.mark.skipif(
    not boards.ARE_INSTALLED,
    reason="gcc-arm-none-eabi, libnewlib-arm-none-eabi and qemu-system-arm aren't installed",
)


def run_here(folder, flatbuffer, x, compiler="gcc"):
    """Returns what the model computes of `x` in a program of a compiler of this machine."""
    name, *options = COMPILERS[compiler]
    (folder / "model.h").write_text(kb.deploy.export_c(flatbuffer).source)
    program = folder / "program"
    kind = "uint8_t" if x.dtype == np.uint8 else "float"
    command = [name, *options, *WARNINGS, f"-DINPUT_TYPE={kind}", f"-I{folder}", boards.PROGRAMS / "host.c"]
    subprocess.run([*command, "-o", program], check=True)
    printed = subprocess.run([program], input=x.tobytes(), stdout=subprocess.PIPE, check=True).stdout
    return np.frombuffer(printed, np.float32).reshape(len(x), -1)


def without_ends(flatbuffer):
    """Returns the model from the position embedding to the last feed-forward layer."""
    model = flatbuffers.unpack(flatbuffer)
    (graph,) = model.subgraphs
    first, *operators, _, _ = graph.operators
    graph.operators, graph.inputs, graph.outputs = operators, first.outputs, operators[-1].outputs
    model.signatureDefs, model.metadata = [], []
    return flatbuffers.pack(model)


def assert_same_bits(folder, flatbuffer, x, compiler="gcc"):
    actual, expected = run_here(folder, flatbuffer, x, compiler), kb.deploy.run(flatbuffer, x).reshape(len(x), -1)
    assert len(np.unique(expected)) > expected.size / 2
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def assert_same_logits(actual, expected):
    """LiteRT's kernels for another processor may sum in another order, which flips a bit in a few images."""
    errors = np.abs(actual - expected).max(-1) / np.abs(expected).max()
    assert np.mean(errors < 1e-5) > 0.7, errors


@pytest.fixture(scope="module")
def pyramid():
    """A flatbuffer with all fused operators, of random weights."""
    return (GOLDEN / "converted_pyramid_fused.tflite").read_bytes()


# --- Values, against binaryvit-runtime ---


@needs_gcc
@needs_runtime
@pytest.mark.parametrize("compiler", COMPILERS)
def test_compilers(pyramid, compiler, tmp_path):
    if not shutil.which(COMPILERS[compiler][0]):
        pytest.skip(f"{COMPILERS[compiler][0]} isn't installed")
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 16)).astype(np.float32)
    assert_same_bits(tmp_path, without_ends(pyramid), x, compiler)


def odd_sizes(x):
    """Sizes that fill no words, several words of keys, blocks with and without branches, and an input read twice."""
    block, merging = kb.layers.BinaryTransformerBlock, kb.layers.PatchMerging
    x = kb.layers.MultiBranchAveragePooling(((1, 7), (3, 1)))(x)
    x = keras.layers.Add()([kb.layers.BinarySelfAttention(2)(x), x])
    return block(4, 3, 1)(merging(80)(block(2, 1, 3, use_pooling_branches=False)(x)))


@needs_gcc
@needs_runtime
def test_odd_sizes(tmp_path):
    model = functional((6, 12, 40), odd_sizes)
    assert_same_bits(tmp_path, kb.deploy.convert(model, "fused"), images(model, 3))


@needs_gcc
@needs_runtime
def test_convolution_with_padding(tmp_path):
    convolution = keras.layers.Conv2D(5, (3, 2), (2, 1), "same", activation="relu")
    model = functional((7, 6, 3), lambda x: keras.layers.Conv2D(4, 3, padding="same")(convolution(x)) + 0.5)
    flatbuffer, x = kb.deploy.convert(model, "fused"), images(model, 2)
    assert_same_logits(run_here(tmp_path, flatbuffer, x), kb.deploy.run(flatbuffer, x).reshape(2, -1))


@needs_gcc
@needs_runtime
def test_float_images(pyramid, tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 16, 16, 3)).astype(np.float32)
    assert_same_logits(run_here(tmp_path, pyramid, x), kb.deploy.run(pyramid, x))


@needs_gcc
@needs_runtime
def test_the_trained_preset(tmp_path):
    """Here and on the boards: ten CIFAR-10 images, as pixels."""
    model = kb.BinaryViT.from_preset("binaryvit_tiny_32_cifar10")
    flatbuffer = kb.deploy.convert(model, "fused")
    values = np.random.default_rng(0).normal(size=(2, 8, 8, 64)).astype(np.float32)
    assert_same_bits(tmp_path, without_ends(flatbuffer), values)
    with np.load(GOLDEN / "cifar10_sample.npz") as sample:
        pixels = sample["images"][:10]
    logits = run_here(tmp_path, flatbuffer, pixels)
    normalized = keras.ops.convert_to_numpy(model.preprocessor.normalize(pixels))
    expected = kb.deploy.run(flatbuffer, normalized)
    assert_same_logits(logits, expected)
    np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))
    export = kb.deploy.export_c(flatbuffer)
    # Two maps of 8 x 8 x 64 values and little else.
    assert 2 * 4 * 8 * 8 * 64 < export.scratch_bytes < 36_500
    assert 370_000 < export.constant_bytes < 373_000 and export.input_bytes == 32 * 32 * 3
    if not boards.ARE_INSTALLED:
        return
    for processor, board in boards.BOARDS.items():
        # In GNU's C, GCC fuses products and sums where nothing forbids it.
        standard = "-std=c99" if processor == "cortex-m4" else "-std=gnu11"
        program = boards.build(tmp_path, export.source, pixels, board, standard, *WARNINGS)
        outputs, instructions = boards.run(program, board)
        np.testing.assert_array_equal(outputs.view(np.uint32), logits.ravel().view(np.uint32))
        assert 7e6 < instructions < 14e6


# --- The header ---


@needs_gcc
def test_program_of_the_documentation(pyramid, tmp_path):
    (program,) = re.findall(r"```c\n(.*?)```", (DOCS / "microcontrollers.md").read_text(), re.DOTALL)
    preprocessor = kb.layers.ImagePreprocessor(16, (0.5,) * 3, (0.25,) * 3)
    (tmp_path / "model.h").write_text(kb.deploy.export_c(add_metadata(pyramid, preprocessor, "abcde")).source)
    (tmp_path / "main.c").write_text(program)
    subprocess.run(["gcc", "-std=c99", *WARNINGS, "-fsyntax-only", tmp_path / "main.c"], check=True)


def test_sizes_and_names(pyramid):
    names = ['quo"te', "back\\slash", "Mücke", "what??/", "last"]
    export = kb.deploy.export_c(add_metadata(pyramid, None, names), "net_2")
    assert r'"quo\042te"' in export.source and r'"M\303\274cke"' in export.source
    assert r'"back\134slash"' in export.source and r'"what\077\077/"' in export.source
    assert "net_2_run(const float *input, float *output, net_2_scratch *scratch)" in export.source
    assert f"NET_2_SCRATCH_BYTES {export.scratch_bytes}\n" in export.source
    assert export.input_bytes == 4 * 16 * 16 * 3


def dense(last, depth=144):
    tensors = [
        ("x", (1, 144), "float32", None),
        ("net/head/w", (4, depth), "float32", np.zeros((4, depth), "float32")),
        ("net/head/y", (1, 4), "float32", None),
    ]
    return build(tensors, [(last, (0, 1), (2,), None)])


@pytest.mark.parametrize(
    "flatbuffer, name, message",
    [
        (dense("SUB"), "net", "'.*head.*' can't be exported to C: its operator is SUB; only ADD, .* can be"),
        (dense("FULLY_CONNECTED", 100), "net", "'.*head.* must be float32 of shape .4, 144., and is .*4, 100."),
        (dense("FULLY_CONNECTED"), "2net", "name must be letters.*'2net'"),
        (b"", "net", "no TFLite flatbuffer"),
    ],
)
def test_errors(flatbuffer, name, message):
    with pytest.raises(ValueError, match=message):
        kb.deploy.export_c(flatbuffer, name)


def test_models_that_c_cannot_have():
    layers = keras.layers
    batch = kb.deploy.convert(functional((4,), layers.Dense(2)), batch_size=2)
    with pytest.raises(kb.deploy.ConversionError, match="one input and one output, for one image"):
        kb.deploy.export_c(batch)
    relu_6 = kb.deploy.convert(functional((8, 8, 3), layers.Conv2D(2, 3, activation="relu6", name="stem")))
    with pytest.raises(kb.deploy.ConversionError, match="'stem.*activation RELU6"):
        kb.deploy.export_c(relu_6)


@pytest.mark.parametrize("suffix", ["tflite", "keras"])
def test_command_line(suffix, run_converter, tmp_path):
    model, header = GOLDEN / f"converted_pyramid_fused.{suffix}", tmp_path / "my-net.h"
    out = run_converter("to_lce.py", model, header, "--target", "c", "--no-verify")
    assert "Flash: 21,276 bytes of constants" in out and "scratch memory, and 3,072 of input" in out
    assert "void my_net_run(const float *input" in header.read_text()
