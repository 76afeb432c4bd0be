"""Reading and writing state dicts: what is whole, what is broken, and what would run."""

import argparse
import os
import pickle
import sys
import warnings

import numpy as np
import pytest

from keras_binaryvit.torch_checkpoints import read_state_dict, write_state_dict

STATE = {
    "matrix": np.arange(6, dtype="float32").reshape(2, 3).T,  # not contiguous
    "scalar": np.float32(0.03),
    "count": np.array(4, "int64"),
    "half": np.array([1.5, -2], "float16"),
}


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def check(actual, expected=STATE):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert isinstance(actual[name], np.ndarray)
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array, err_msg=name, strict=True)


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".pth", ".pt"])
def test_round_trip_is_exact(ending, tmp_path):
    if ending.startswith(".p"):
        pytest.importorskip("torch")
    path = tmp_path / f"state{ending}"
    path.write_bytes(b"old")
    write_state_dict(path, STATE)
    check(read_state_dict(path))
    assert os.listdir(tmp_path) == [path.name]


def test_torch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    write_state_dict(tmp_path / "state.pth", STATE)
    state = torch.load(tmp_path / "state.pth", weights_only=True)
    check({name: tensor.numpy() for name, tensor in state.items()})
    # num_batches_tracked may be left out: PyTorch fills it in.
    norm = torch.nn.BatchNorm1d(2)
    statistics = {name: np.full(2, i, "float32") for i, name in enumerate(("weight", "bias"))}
    statistics |= {name: np.full(2, 3, "float32") for name in ("running_mean", "running_var")}
    write_state_dict(tmp_path / "norm.pth", statistics)
    norm.load_state_dict(torch.load(tmp_path / "norm.pth", weights_only=True), strict=True)


def test_names_under_state(tmp_path):
    arrays = {"input": np.ones(3), **{f"state/{name}": array for name, array in STATE.items()}}
    np.savez(tmp_path / "recording.npz", **arrays)
    check(read_state_dict(tmp_path / "recording.npz"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_training_checkpoint(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=5e-4, opt_betas=None, device="cuda"),
    }
    path = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    check(read_state_dict(path), {name: t.detach().numpy() for name, t in model.state_dict().items()})


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_bfloat16_becomes_float32(ending, tmp_path):
    torch = pytest.importorskip("torch")
    state = {"a": torch.tensor([1.5, -3.25]).bfloat16()}
    path = tmp_path / f"state{ending}"
    if ending == ".pth":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    check(read_state_dict(path), {"a": np.array([1.5, -3.25], "float32")})


@pytest.mark.parametrize("where", ["beside the model", "in the model", "alone", "legacy", "in the command line"])
def test_a_pickle_runs_nothing(where, tmp_path):
    torch = pytest.importorskip("torch")
    trap, path = Runs(tmp_path / "ran"), tmp_path / "checkpoint.pth"
    tensors = {"a": torch.ones(2)}
    if where == "beside the model":
        torch.save({"model": tensors, "epoch": trap}, path)
    elif where == "in the model":
        torch.save({"model": {**tensors, "b": trap}}, path)
    elif where == "alone":
        path.write_bytes(pickle.dumps(trap, protocol=2))
    elif where == "legacy":
        torch.save({"model": tensors, "epoch": trap}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"model": tensors, "args": argparse.Namespace(lr=trap)}, path)
    with pytest.raises(ValueError, match="checkpoint.pth.*more than tensors.*nothing of it was run") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


def test_unsafe_versions_of_pytorch_are_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(2)}, tmp_path / "state.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ImportError, match="2.6 or newer. Found: 2.5.1"):
        read_state_dict(tmp_path / "state.pth")


def test_pickled_npz_runs_nothing(tmp_path):
    np.savez(tmp_path / "state.npz", a=np.array([Runs(tmp_path / "ran")], dtype=object))
    with pytest.raises(ValueError, match="state.npz.*can't be read as a .npz file.*Object arrays"):
        read_state_dict(tmp_path / "state.npz")
    assert os.listdir(tmp_path) == ["state.npz"]


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".pth"])
@pytest.mark.parametrize("content", ["cut short", "text", "nothing"])
def test_broken_files(ending, content, tmp_path):
    if ending == ".pth":
        pytest.importorskip("torch")
    path = tmp_path / f"broken{ending}"
    write_state_dict(path, {"a": np.ones((32, 32), "float32")})
    whole = path.read_bytes()
    path.write_bytes({"cut short": whole[: len(whole) // 2], "text": b"not an archive", "nothing": b""}[content])
    with pytest.raises(ValueError, match=f"broken.*can't be read as a {ending} file: .+") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["a list", "a module", "numbers"])
def test_no_state_dict(content, tmp_path):
    torch = pytest.importorskip("torch")
    contents = {"a list": [1, 2], "a module": torch.nn.Linear(2, 2), "numbers": {"epoch": 3}}
    torch.save(contents[content], tmp_path / "x.pth")
    messages = {"a list": "a list, not a state dict", "a module": "Linear", "numbers": "no tensors: epoch"}
    with pytest.raises(ValueError, match=messages[content]):
        read_state_dict(tmp_path / "x.pth")


NAMES = ("vit.layernorm.weight", "vit.embeddings.cls_token", "classifier.bias")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.", "state_dict."])
def test_prefixes_of_all_names_and_other_entries(prefix, tmp_path):
    arrays = {name: np.full(2, number, "float32") for number, name in enumerate(NAMES)}
    state = {f"{prefix}{name}": array for name, array in arrays.items()}
    np.savez(tmp_path / "state.npz", **state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_state_dict(tmp_path / "state.npz")
    assert list(read) == list(NAMES)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)

    others = {
        "optimizer.state.0": np.ones(3),
        "optimizer.state.1": np.ones(3),
        "teacher.vit.layernorm.weight": np.ones(2),
    }
    np.savez(tmp_path / "state.npz", **others, **state)
    with pytest.warns(UserWarning, match=r"Skipped.*optimizer \(2 entries\), teacher$"):
        read = read_state_dict(tmp_path / "state.npz")
    assert list(read) == list(NAMES)


def test_training_checkpoints(tmp_path):
    torch = pytest.importorskip("torch")
    state = {f"module.{name}": torch.ones(2) for name in NAMES}
    torch.save(
        {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1, "exp_avg": torch.ones(2)}}, tmp_path / "x.pth"
    )
    with pytest.warns(UserWarning, match="Skipped.*(epoch|optimizer)"):
        assert list(read_state_dict(tmp_path / "x.pth")) == list(NAMES)


def test_bad_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file.*missing.npz"):
        read_state_dict(tmp_path / "missing.npz")
    (tmp_path / "state.h5").write_bytes(b"")
    for function in (read_state_dict, lambda path: write_state_dict(path, STATE)):
        with pytest.raises(ValueError, match="'state.h5' must end in one of .npz, .safetensors, .pth, .pt"):
            function(tmp_path / "state.h5")
    with pytest.raises(FileNotFoundError, match="create it"):
        write_state_dict(tmp_path / "nowhere" / "state.npz", STATE)


@pytest.mark.parametrize(
    "ending, package, advice",
    [(".pth", "torch", "pip install torch"), (".safetensors", "safetensors", r"keras-binaryvit\[checkpoints\]")],
)
def test_a_missing_package_is_named(ending, package, advice, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / f"state{ending}").write_bytes(b"")
    for function in (read_state_dict, lambda path: write_state_dict(path, STATE)):
        with pytest.raises(ImportError, match=advice):
            function(tmp_path / f"state{ending}")
    write_state_dict(tmp_path / "state.npz", STATE)
    check(read_state_dict(tmp_path / "state.npz"))
