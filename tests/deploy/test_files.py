import os

import pytest

from keras_binaryvit.deploy import load_model, write_file
from keras_binaryvit.deploy.files import check_output


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
