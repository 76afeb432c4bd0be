"""The wheel for 64-bit ARM, and its library on an emulated board, against this machine's results."""

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.schema_py_generated import FullyConnectedOptionsT
from binaryvit_runtime import Interpreter
from bionic_on_glibc import write_bionic
from classifiers import classifier
from graphs import Operator, graph
from models import Tensor, options, pack, run, single_op
from PIL import Image
from test_embedding_and_head import Network
from test_fused_ops import attention, feed_forward, patch_merging, pooling, special
from test_kernels import product
from test_raspberry_pi import CAMERA, KERNEL, METADATA
from test_wheels import check_library

HERE = Path(__file__).parent
LIBRARY = Path("content", "binaryvit_runtime", "libbinaryvit_runtime.so")

if platform.machine() != "x86_64":
    pytest.skip("the comparison is with x86-64", allow_module_level=True)


def record_models(folder):
    """Writes models, inputs and this machine's outputs to a folder; binary operators must give the same bits."""

    def record(name, flatbuffer, x, output, atol=0.0):
        (folder / f"{name}.tflite").write_bytes(flatbuffer)
        np.savez(folder / f"{name}.npz", input=x, output=output, atol=atol)

    for name in "residual", "transformer":
        flatbuffer = (HERE / "golden" / f"{name}.tflite").read_bytes()
        x = np.load(HERE / "golden" / f"{name}.npz")["images"][:1]
        output = Interpreter(flatbuffer).predict(x)
        record(name, flatbuffer, x, output, atol=2e-5 * np.abs(output).max())  # XNNPACK rounds as the processor does

    rng = np.random.default_rng(0)
    for index in range(40):
        channels = int(rng.choice([1, 31, 32, 64, 100, 512, 1100]))
        sizes = int(rng.integers(1, 40)), channels, int(rng.integers(1, 80)), int(rng.choice([0, 1, 3]))
        flatbuffer, x, _ = product(*sizes, seed=index)
        record(f"product_{index}", flatbuffer, x, run(flatbuffer, x))
    for index in range(20):
        flatbuffer, x = convolution(rng)
        record(f"convolution_{index}", flatbuffer, x, run(flatbuffer, x))
    for index, channels in enumerate((1, 20, 32, 64, 100, 128)):
        heads, expansion = (2, 8) if channels % 4 == 0 else (1, 3)
        shape = (1, 6, 9, channels)
        cases = {
            "feed_forward": feed_forward(index, shape, expansion, False),
            "attention": attention(index, 1, (2, 3), 1 + index % 3, heads, channels // heads, True),
            "pooling": pooling(index, shape, 2, 2, True),
            "patch_merging": patch_merging(index, 1, 3, 5, channels, 2),
        }
        with np.errstate(invalid="ignore"):
            cases["special_feed_forward"] = feed_forward(index, shape, expansion, False, special)
            cases["special_attention"] = attention(
                index, 1, (2, 3), 1 + index % 3, heads, channels // heads, True, inputs_of=special
            )
            cases["special_merging"] = patch_merging(index, 1, 3, 5, channels, 2, special)
        for name, (flatbuffer, (x,), expected) in cases.items():
            record(f"{name}_{index}", flatbuffer, x, expected)
    for index, units in enumerate((33, 64)):  # from the image to the logits
        network = Network(index, patches=(4, 16), patch=(4, 4), units=units, classes=100)
        record(f"network_{index}", network.flatbuffer(), network.image, network.expected()["logits"])
    for rows, depth in (5, 3), (49, 39):  # of real numbers, multiplied with themselves
        x = rng.normal(size=(rows, depth)).astype(np.float32)
        tensors = {"x": Tensor(x.shape, "float32"), "y": Tensor((rows, rows), "float32")}
        tensors["signs"] = Tensor((rows, -(-depth // 32)), "int32")
        operators = [Operator("FULLY_CONNECTED", ["x", "x"], ["y"], FullyConnectedOptionsT())]
        operators.append(Operator("LceQuantize", ["x"], ["signs"]))
        flatbuffer = graph(tensors, operators, ["x"], ["y", "signs"])
        record(f"fully_connected_{rows}", flatbuffer, x, run(flatbuffer, x))
    for channels in 1, 31, 32, 100, 128, 513:
        x = rng.choice([0.0, -0.0, np.nan, -np.inf, 1e-45, -1e-45, 1, -1], (1, 3, channels)).astype(np.float32)
        output = Tensor((1, 3, -(-channels // 32)), "int32")
        record(f"quantize_{channels}", single_op("LceQuantize", [Tensor(x.shape, "float32")], output), x, pack(x))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    record_models(folder)
    return folder


def convolution(rng):
    """Returns a convolution of 3 x 3 positions around zeros or ones, with any output, and its input."""
    channels, units = int(rng.integers(1, 80)), int(rng.integers(1, 40))
    dtype = str(rng.choice(["float32", "int8", "int32"]))
    x, kernel = (pack(rng.choice([-1, 1], shape)) for shape in [(1, 5, 6, channels), (units, 3, 3, channels)])
    multiplier, bias = rng.normal(size=(2, units)).astype(np.float32)
    threshold = rng.integers(0, 9 * channels, units, dtype=np.int32)
    inputs = [Tensor(x.shape, "int32"), Tensor(kernel.shape, "int32", kernel)]
    inputs += [Tensor((units,), "float32", multiplier), Tensor((units,), "float32", bias)]
    inputs += [Tensor((units,), "int32", threshold)]
    custom_options = options(
        stride_height=1,
        stride_width=2,
        dilation_height_factor=1,
        dilation_width_factor=1,
        padding=0,
        pad_values=int(rng.integers(0, 2)),
        channels_in=channels,
        fused_activation_function=0,
    )
    depth = -(-units // 32) if dtype == "int32" else units
    output = Tensor((1, 5, 3, depth), dtype, quantization=(0.25, 3) if dtype == "int8" else None)
    return single_op("LceBconv2d", inputs, output, custom_options), x


BOARDS = [("cortex-a72", "neon", "2.3.0"), ("cortex-a76", "dotprod", "1.4.0")]


def on_board(script, *arguments, **settings):
    """Returns what a script prints on an emulated board."""
    if not shutil.which("qemu-aarch64"):
        pytest.skip("qemu-aarch64 isn't installed; apt-get install qemu-user")
    environment = os.environ | {"PYTHONPATH": "", **settings}
    command = [HERE / "arm64.sh", HERE / script, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def libraries(aarch64_wheel, request, tmp_path_factory):
    """GCC's library for Linux, and clang's for Android where it can be built; and what qemu needs for both."""
    gcc = aarch64_wheel / LIBRARY
    try:
        aar = request.getfixturevalue("aar")
    except pytest.skip.Exception:  # test_android.py says so
        return [gcc], ""
    clang = aar / "content" / "jni" / "arm64-v8a" / "libbinaryvit_runtime.so"
    bionic = tmp_path_factory.mktemp("bionic")
    write_bionic(clang, bionic)
    return [gcc, clang], f"-E LD_LIBRARY_PATH={bionic}"


@pytest.mark.parametrize("cpu, kernel_set, litert", BOARDS)
def test_emulated_boards_give_this_machines_bits(cpu, kernel_set, litert, libraries, models):
    paths, options = libraries
    settings = {"BINARYVIT_CPU": cpu, "BINARYVIT_KERNELS": kernel_set, "BINARYVIT_LITERT": litert, "QEMU_OPTS": options}
    assert "114 models agree" in on_board("arm64_check.py", models, *paths, **settings)


def test_the_commands_for_a_raspberry_pi(aarch64_wheel, tmp_path):
    (tmp_path / "model.tflite").write_bytes(classifier(KERNEL, (2, 2, 3), json.dumps(METADATA).encode()))
    Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "photo.jpg")
    (tmp_path / "picamera2.py").write_text(CAMERA)
    printed = on_board("arm64_commands.py", tmp_path, PYTHONPATH=str(aarch64_wheel / "content"))
    image, camera, measured = re.split(r"^\$ .*\n", printed, flags=re.M)[1:]
    assert "red" in image.splitlines()[0]
    assert re.fullmatch(r"open\n100% green .*\n100% blue .*\nclosed\n\n", camera)
    assert "median" in measured


def test_the_wheel(aarch64_wheel):
    (wheel,) = aarch64_wheel.glob("*.whl")
    content = aarch64_wheel / "content"
    assert wheel.name == "binaryvit_runtime-0.1.0-py3-none-manylinux_2_17_aarch64.whl"
    tags = (content / "binaryvit_runtime-0.1.0.dist-info" / "WHEEL").read_text()
    assert "Tag: py3-none-manylinux_2_17_aarch64" in tags and "Root-Is-Purelib: false" in tags
    check_library(aarch64_wheel / LIBRARY, "aarch64")
    assert (content / "binaryvit_runtime" / "include" / "binaryvit_runtime.h").exists()
    assert list(content.glob("*.dist-info/licenses/LICENSE")) and (content / "binaryvit_runtime" / "py.typed").exists()
