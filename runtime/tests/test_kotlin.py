"""The example app's Kotlin: both flavors compile, and all but the screen runs on a JVM, with LiteRT 2."""

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path

import ai_edge_litert
import numpy as np
import pytest
from binaryvit_runtime import include_path, library_path, read_metadata
from classifiers import classifier
from conftest import RUNTIME
from kotlin_app import compile_app
from PIL import Image, ImageOps

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
PREPROCESSING = json.loads((HERE.parents[1] / "tests" / "golden" / "preprocessing.json").read_text())
METADATA = {"version": 2, "mean": [0.5, 0.25, 0], "std": [1, 2, 4.5], "resize_size": [7, 9], "interpolation": "bicubic"}
METADATA |= {"outputs": "probabilities", "labels": ["ant", 'Mücke \\ "\n', "[{"]}
LITERT = Path(ai_edge_litert.__file__).parent


@pytest.fixture(scope="session")
def folder(built, aar):
    """A folder with the app's jar for each flavor, and the libraries that it loads on this machine."""

    def make(folder):
        classes = aar / "content" / "classes.jar"
        compile_app(folder, classes, "litert1")
        compile_app(folder, classes, "litert2", HERE / "app_test.kt")
        jdk = Path(shutil.which("javac")).resolve().parents[1] / "include"
        command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-Wl,-z,defs", f"-I{jdk}"]
        command += [f"-I{jdk / 'linux'}", f"-I{include_path()}", RUNTIME / "android" / "litert2_jni.cc", library_path()]
        command += [
            LITERT / "libLiteRt.so",
            f"-Wl,-rpath,{library_path().parent}:{LITERT}",
            "-Wl,--allow-shlib-undefined",
        ]
        done = subprocess.run([*command, "-o", folder / "libbinaryvit_litert2.so"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return built("kotlin", make)


@pytest.fixture
def ask(folder, aar):
    """Returns a function from lines of words to the app's answers."""

    def run(*lines):
        jars = f"{folder / 'litert2.jar'}:{aar / 'content' / 'classes.jar'}"
        command = ["java", f"-Djava.library.path={folder}", "-cp", jars, "App_testKt"]
        asked = "".join("\t".join(map(str, line)) + "\n" for line in lines)
        done = subprocess.run(command, input=asked, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answers = done.stdout.splitlines()
        assert len(answers) == len(lines), done.stdout
        return answers

    return run


@pytest.fixture
def model(tmp_path):
    """Returns a function from metadata to the path of a classifier that has it."""

    def write(metadata, kernel=((0,) * 12,) * 3, shape=(2, 2, 3)):
        content = metadata if isinstance(metadata, bytes) else json.dumps(metadata, ensure_ascii=False).encode()
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.tflite"
        path.write_bytes(classifier(kernel, shape, content))
        return path

    return write


def write_pixels(image, path):
    """Writes what Android's Bitmap.getPixels gives, and returns width and height."""
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), "<u4"), -1, 0)
    path.write_bytes((0xFF000000 | red << 16 | green << 8 | blue).astype("<u4").tobytes())
    return image.size


def test_metadata_is_read(model, ask):
    assert json.loads(json.dumps(METADATA["labels"])) == METADATA["labels"]
    old = {"version": 1, "mean": [0], "std": [1e2], "resize": 7, "new": [None, True, {"a": -1.5e-3}]}
    names, plain = ask(("names", model(METADATA | {"labels": ["ant", 'Mücke\u0001\\"/', "[{"]})), ("names", model(old)))
    assert names == '[ant, Mücke\u0001\\"/, [{], 3, true'
    assert plain == "null, 1, false"


REFUSED = [
    (b"[" * 200_000, "nested more than 8 deep"),
    (b'{"a":' * 200_000, "nested more than 8 deep"),
    (b"", "isn't JSON at character 0"),
    (b"\xff", "MalformedInputException"),
    (b'{"version": 2} x', "isn't JSON at character 15"),
    (b'{"version": 2,}', "isn't JSON at character 14"),
    (b"{'version': 2}", "isn't JSON at character 1"),
    (b'{"version": 02}', "isn't JSON at character 13"),
    (b'{"version": "\\u12"}', "isn't JSON"),
    (b"[1]", "no object"),
    ({"version": 3}, "of version 3.0; this program reads 1 and 2"),
    ({"version": 2}, "no numbers for mean"),
    (METADATA | {"mean": [0, 0]}, "no mean and std of 1 or 3 channels"),
    (METADATA | {"std": [1, 1, 0]}, "mean and std are"),
    (METADATA | {"mean": [0, 0, "1"]}, "no numbers for mean"),
    (METADATA | {"resize_size": [7, 10**9]}, "resize_size is"),
    (METADATA | {"resize_size": [7, 7.5]}, "resize_size is"),
    (METADATA | {"resize_size": []}, "resize_size is"),
    (METADATA | {"interpolation": ["bicubic"]}, "interpolation is"),
    (METADATA | {"outputs": ["logits"]}, "outputs are"),
    (METADATA | {"labels": ["a", 2]}, "labels are no list of texts"),
]


def test_what_makes_no_sense_is_refused(model, ask):
    answers = ask(*(("names", model(content)) for content, _ in REFUSED))
    for answer, (content, message) in zip(answers, REFUSED, strict=True):
        assert message in answer and answer.startswith("model.tflite can't be used: "), (str(content)[:50], answer)


def test_damaged_files_are_refused_where_python_refuses_them(model, ask):
    """Kotlin also refuses some that Python reads: those whose damage is in metadata of another name."""
    path = model(METADATA)
    content = path.read_bytes()
    (refused,) = ask(("damaged", path))

    def python_refuses(copy):
        try:
            return read_metadata(copy).preprocessor is None
        except ValueError:
            return True

    expected = []
    for at in range(len(content)):
        copies = [content[:at] + bytes([byte]) + content[at + 1 :] for byte in (0, 1, 0x7F, 0x80, 0xFF)]
        expected += [python_refuses(copy) for copy in [*copies, content[:at]]]
    both = list(zip(refused, expected, strict=True))
    assert sum(expected) > 1000 and both.count(("0", True)) == 0
    assert both.count(("1", False)) < 100


def test_images_are_prepared_as_in_training(model, ask, tmp_path):
    lines, expected = [], []
    for case in PREPROCESSING:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(base64.b64decode(case["image"]))))
        size = write_pixels(image, tmp_path / f"{case['name']}.pixels")
        expected.append(np.frombuffer(base64.b64decode(case["expected"]), "<f4"))
        kernel = np.random.default_rng(0).normal(scale=0.1, size=(3, expected[-1].size))
        path = model(case["metadata"], kernel, tuple(case["input_shape"]))
        lines.append(("prepare", path, tmp_path / f"{case['name']}.pixels", *size, *case["input_shape"][:2]))
        lines.append(("classify", path, tmp_path / f"{case['name']}.pixels", *size))
    answers = ask(*lines)
    for case, values, prepared, best in zip(PREPROCESSING, expected, answers[::2], answers[1::2], strict=True):
        levels = (
            (np.array(prepared.split(), np.float32) - values).reshape(case["input_shape"])
            * case["metadata"]["std"]
            * 255
        )
        assert np.abs(levels).max() < 0.01, case["name"]
        exponentials = np.exp(np.random.default_rng(0).normal(scale=0.1, size=(3, values.size)) @ values)
        label, probability = best.split("\t")
        assert label == f"class {exponentials.argmax()}"
        assert float(probability) == pytest.approx(exponentials.max() / exponentials.sum(), abs=1e-3)


@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_litert_2_runs_the_binary_operators(name, ask, tmp_path):
    recording = np.load(GOLDEN / f"{name}.npz")
    recording["images"][0].astype("<f4").tofile(tmp_path / "values")
    run = ("run", GOLDEN / f"{name}.tflite", tmp_path / "values")
    answers = ask((*run, 1), (*run, 4))
    largest = np.abs(recording["outputs"]).max()
    for answer in answers:
        np.testing.assert_allclose(
            np.array(answer.split(), float), recording["outputs"][0], rtol=0, atol=2e-5 * largest
        )


def test_large_photos_are_shrunk_while_they_are_decoded(model, ask):
    small, large = model(METADATA | {"resize_size": 32}), model(METADATA | {"resize_size": [256, 256]})
    answers = ask(
        ("sample", small, 8160, 6144, 32, 32),  # 50 megapixels: 680 x 512 are left
        ("sample", large, 6144, 8160, 224, 224),
        ("sample", model(METADATA | {"resize_size": [1000, 10]}), 8160, 6144, 10, 10),
        ("sample", small, 640, 480, 32, 32),
    )
    assert answers == ["12", "12", "3", "1"]


def test_failures_reach_the_user_as_a_message(model, ask, tmp_path):
    (tmp_path / "values").write_bytes(bytes(4))
    answers = ask(
        *(("fail", number) for number in range(4)),
        ("classify", model(METADATA | {"labels": ["a", "b"]}), tmp_path / "values", 1, 1),
        ("classify", model(METADATA | {"mean": [0], "std": [1]}), tmp_path / "values", 1, 1),
        ("classify", model(METADATA | {"resize_size": 1}), tmp_path / "values", 1, 1),
        ("run", GOLDEN / "residual.tflite", tmp_path / "values", 1),
        ("run", GOLDEN / "residual.tflite", tmp_path / "values", 65),
        ("run", tmp_path / "values", tmp_path / "values", 1),
    )
    assert answers[:4] == [
        "There isn't enough memory for this image, or for the model.",
        "The file is nested too deeply to be read.",
        "This app lacks a library for this processor, or for this version of LiteRT: no libx",
        "plain",
    ]
    assert answers[4] == "a classifier gives (1, 2), but this model gives [1, 3]"
    assert answers[5] == "a classifier takes (1, height, width, 1), but this model takes [1, 2, 2, 3]"
    assert answers[6] == "the model takes 2 x 2 pixels, resized to 1 x 1"
    assert "length" in answers[7] and "1 to 64, but is 65" in answers[8]
    assert answers[9].startswith("LiteRT 2 can't run this model: LiteRtCreateModelFromBuffer returned status ")
