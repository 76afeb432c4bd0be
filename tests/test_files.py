import os

import keras
import numpy as np
import pytest

from keras_binaryvit.deploy import load_model, write_file
from keras_binaryvit.files import check_output, save_model


def test_writes_and_replaces(tmp_path):
    write_file(tmp_path / "file", b"first")
    write_file(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    write_file(tmp_path / "file", b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_models_are_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    path = tmp_path / "model.keras"
    path.write_bytes(b"old")

    def cut_short(path):
        with open(path, "wb") as file:
            file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(model, "save", cut_short)
        with pytest.raises(OSError, match="No space left"):
            save_model(path, model)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["model.keras"])
    save_model(path, model)
    assert os.listdir(tmp_path) == ["model.keras"]
    np.testing.assert_array_equal(load_model(path).get_weights()[0], model.get_weights()[0])
    with pytest.raises(ValueError, match="'model.h5'"):
        save_model("model.h5", model)


def test_bad_paths(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere.*create it"):
        check_output(tmp_path / "nowhere" / "x.tflite")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_output(tmp_path)

    def read_only(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(PermissionError, match="Read-only file system"):
        check_output(tmp_path / "x.tflite")


def test_models_that_are_no_models(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        load_model(tmp_path / "missing.keras")
    (tmp_path / "cut.keras").write_bytes(b"PK\x03\x04 and not much more")
    with pytest.raises(ValueError, match="no whole .keras file"):
        load_model(tmp_path / "cut.keras")
