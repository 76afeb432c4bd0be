"""from_torch.py and to_torch.py, run as scripts: there and back, and what they say."""

import json
import os

import numpy as np
import parity
import pytest

import keras_binaryvit as kb


def golden(name):
    return parity.GOLDEN / f"{name}.npz", "--config", parity.GOLDEN / f"{name}.json"


@pytest.mark.parametrize(
    "name, ending",
    [("pyramid_mini", ".npz"), ("flat_row1_cls", ".safetensors"), ("flat_row4_branch_ls", ".pth"), ("deit_fp", ".pth")],
)
def test_there_and_back(name, ending, run_converter, tmp_path):
    if ending == ".pth":
        pytest.importorskip("torch")
    checkpoint, *config = golden(name)
    model, written, again = tmp_path / "model.keras", tmp_path / f"model{ending}", tmp_path / "again.keras"
    out = run_converter("from_torch.py", checkpoint, model, *config)
    assert "10 classes" in out and f"Wrote {model}" in out
    assert f"Wrote {len(kb.torch_checkpoints.torch_parameters(kb.deploy.load_model(model)))} tensors" in run_converter(
        "to_torch.py", model, written
    )
    run_converter("from_torch.py", written, again, *config)

    recording = parity.Recording(name)
    state = kb.torch_checkpoints.to_torch_state_dict(kb.deploy.load_model(again))
    assert state.keys() == {name for name in recording.state if not name.endswith("num_batches_tracked")}
    for key, array in state.items():
        np.testing.assert_array_equal(array, recording.state[key], err_msg=key)
    assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in (model, written, again))


def test_a_training_checkpoint(run_converter, tmp_path):
    torch = pytest.importorskip("torch")
    recording = parity.Recording("deit_fp")
    state = {name: torch.from_numpy(array) for name, array in recording.state.items()}
    torch.save({"model": state, "epoch": 299}, tmp_path / "best.pth")
    (tmp_path / "config.json").write_text(json.dumps(recording.config["config"]))
    run_converter(
        "from_torch.py", tmp_path / "best.pth", tmp_path / "model.keras", "--config", tmp_path / "config.json"
    )
    logits = kb.deploy.load_model(tmp_path / "model.keras")(recording.images)
    assert parity.relative_error(logits, recording.arrays["eval/logits"]) < 1e-5


def test_errors_are_one_line_and_leave_the_old_file(run_converter, tmp_path):
    checkpoint, *config = golden("deit_fp")
    model = tmp_path / "model.keras"
    model.write_bytes(b"old")
    (tmp_path / "cut.npz").write_bytes(checkpoint.read_bytes()[:1000])
    for arguments, message in (
        ((tmp_path / "missing.npz", model, *config), "There is no file"),
        ((tmp_path / "cut.npz", model, *config), "can't be read as a .npz file"),
        ((checkpoint, tmp_path / "nowhere" / "model.keras", *config), "create it first"),
        ((checkpoint, model, "--preset", "deit_huge"), "Unknown preset 'deit_huge'"),
        ((checkpoint, model, "--config", tmp_path / "missing.json"), "There is no file"),
    ):
        with pytest.raises(SystemExit) as stop:
            run_converter("from_torch.py", *arguments)
        assert str(stop.value).startswith("from_torch.py: ") and message in str(stop.value)
        assert "\n" not in str(stop.value)
    assert model.read_bytes() == b"old"
    with pytest.raises(SystemExit, match="to_torch.py: .*no whole .keras file"):
        run_converter("to_torch.py", model, tmp_path / "x.npz")
    assert sorted(os.listdir(tmp_path)) == ["cut.npz", "model.keras"]


def test_all_mismatches_are_listed(run_converter, tmp_path):
    checkpoint = golden("flat_row1_cls")[0]
    config = json.loads((parity.GOLDEN / "flat_row1_cls.json").read_text())["config"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "image_size": 64}))
    with pytest.raises(SystemExit) as stop:
        run_converter("from_torch.py", checkpoint, tmp_path / "model.keras", "--config", tmp_path / "config.json")
    lines = str(stop.value).splitlines()
    # A whole block is missing, and the position embedding has another size.
    names = [name for name in parity.Recording("flat_row1_cls").state if ".layer.1." in name]
    missing = [name for name in names if not name.endswith("num_batches_tracked")]
    assert len(lines) == 1 + len(missing) + 1
    assert "position_embeddings is (1, 65, 48), the model needs (1, 257, 48)" in str(stop.value)
    assert all(f"missing: {name.replace('.layer.1.', '.layer.2.')} " in str(stop.value) for name in missing)
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize("arguments", [[], ["--preset", "deit_small", "--config", "config.json"]])
def test_one_architecture_is_needed(arguments, run_converter, capsys):
    with pytest.raises(SystemExit):
        run_converter("from_torch.py", "x.npz", "x.keras", *arguments)
    assert "--preset" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("script", ["from_torch.py", "to_torch.py"])
def test_help(script, run_converter, capsys):
    with pytest.raises(SystemExit) as stop:
        run_converter(script, "--help")
    assert stop.value.code == 0
    assert f"binaryvit-{script[:-3].replace(chr(95), chr(45))} " in capsys.readouterr().out
