"""read_metadata: of whole files, and of hostile ones."""

import json

import numpy as np
import pytest
from binaryvit_runtime import Metadata, Preprocessor, read_metadata
from classifiers import classifier
from hypothesis import example, given, settings
from hypothesis import strategies as st

KERNEL = np.zeros((3, 12))
CONTENT = {
    "version": 2,
    "mean": [0.5, 0.25, 0],
    "std": [1, 2, 4.5],
    "resize_size": [7, 9],
    "interpolation": "bicubic",
    "outputs": "probabilities",
    "labels": ["ant", "Mücke", ""],
}


def model(content):
    return classifier(KERNEL, (2, 2, 3), content if isinstance(content, bytes) else json.dumps(content).encode())


def test_reads_what_is_there(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(model(CONTENT))
    expected = Metadata(
        Preprocessor((0.5, 0.25, 0.0), (1.0, 2.0, 4.5), (7, 9), "bicubic"), "probabilities", ("ant", "Mücke", "")
    )
    assert read_metadata(path) == read_metadata(path.read_bytes()) == expected
    assert read_metadata(model({"version": 1})) == Metadata()
    assert read_metadata(model({"version": 1, "mean": [0], "std": [1], "new": 5})).preprocessor == Preprocessor(
        (0,), (1,)
    )
    assert read_metadata(classifier(KERNEL, (2, 2, 3))) == Metadata()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_metadata(tmp_path / "nowhere")


def test_reads_version_1():
    """Pixels of the short side, in place of both."""
    old = {name: value for name, value in CONTENT.items() if name != "resize_size"} | {"version": 1, "resize": 7}
    read = read_metadata(model(old))
    assert read.preprocessor == Preprocessor((0.5, 0.25, 0.0), (1.0, 2.0, 4.5), 7, "bicubic")
    assert read.class_names == ("ant", "Mücke", "")
    image = np.zeros((21, 40, 3), np.uint8)
    image[4:17, 8:32] = 255  # 21 x 33 pixels become 7 x 11, and the 3 x 5 in the center are the model's
    plain = Preprocessor((0, 0, 0), (1, 1, 1), 7)
    assert plain(image, 3, 5).shape == (3, 5, 3) and plain(image, 3, 5).min() == 1


def test_reads_what_the_converter_writes():
    kb = pytest.importorskip("keras_binaryvit")
    written = kb.layers.ImagePreprocessor(2, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize_size=9, interpolation="bicubic")
    read = read_metadata(kb.deploy.add_metadata(model(CONTENT), written, ["a", "b", "ü"]))
    expected = Preprocessor((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (9, 9), "bicubic")
    assert read == Metadata(expected, "logits", ("a", "b", "ü"))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "damaged: Expecting value"),
        (b"\xff\xfe", "damaged"),
        (b"[" * 200_000, "damaged"),
        (b"[1]", "has no version"),
        (b'{"version": "1"}', "has no version"),
        ({"version": 3}, "reads versions up to 2. Install a newer"),
        (CONTENT | {"mean": [0, 0]}, "a value for each of 1 or 3 channels"),
        (CONTENT | {"mean": "0,0,0"}, "mean must be a finite number"),
        (CONTENT | {"std": [1, 1, 0]}, "std be positive"),
        (CONTENT | {"std": [1, 1, float("nan")]}, "std must be a finite number"),
        (CONTENT | {"std": [1, 1, True]}, "std must be a finite number"),
        ({"version": 1, "mean": [1]}, "missing .* 'std'"),
        (CONTENT | {"resize_size": [7, 10**9]}, "resize_size must be 1 to 10,000"),
        (CONTENT | {"resize_size": [7]}, "resize_size must be"),
        (CONTENT | {"version": 1, "resize": 7.5}, "resize_size must be"),
        (CONTENT | {"interpolation": ["bicubic"]}, "interpolation must be"),
        (CONTENT | {"outputs": ["logits"]}, "outputs="),
        (CONTENT | {"labels": ["a", 2, "c"]}, "labels must be a list of texts"),
    ],
)
def test_what_makes_no_sense_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        read_metadata(model(content))


def test_cut_anywhere():
    whole = model(CONTENT)
    refused = 0
    for length in range(len(whole)):
        try:
            assert read_metadata(whole[:length]) in (read_metadata(whole), Metadata())
        except ValueError:
            refused += 1
    assert refused > len(whole) / 4


def test_a_length_beyond_the_file():
    content = bytearray(model(CONTENT))
    start = content.index(b'{"version"')
    content[start - 4 : start] = (len(content) - start + 1).to_bytes(4, "little")
    with pytest.raises(ValueError, match=f"truncated or damaged: {len(content)} bytes"):
        read_metadata(bytes(content))


@given(st.data())
@settings(max_examples=400)
def test_any_bytes(data):
    """Whatever is changed, the answer is metadata or a ValueError."""
    content = bytearray(model(CONTENT))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(8, len(content) - 1))
        content[position] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    try:
        assert isinstance(read_metadata(bytes(content)), Metadata)
    except ValueError:
        pass


@given(st.binary(max_size=200))
@example(b"\xff\xff\xff\xff")
def test_any_file(content):
    with pytest.raises(ValueError, match="damaged|no version"):
        read_metadata(b"\x08\0\0\0TFL3" + b"\xff" * 8 + content)
