"""The examples of docs/ run, block after block."""

import re
from pathlib import Path

import keras
import pytest
from requirements import needs_runtime

import keras_binaryvit as kb

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a page in a folder of its own and returns its variables."""

    def run(page):
        monkeypatch.chdir(tmp_path)
        namespace = {"__name__": "docs"}
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL):
            exec(compile(block, page, "exec"), namespace)
        return namespace

    return run


@needs_runtime
def test_readme(run, tmp_path):
    run("README.md")
    assert (tmp_path / "model.tflite").stat().st_size < 1_400_000


def test_adding_a_layer(run, capsys):
    run("docs/adding_a_layer.md")
    printed = capsys.readouterr().out
    assert "'Convolution'" in printed and "'Dense'" in printed and ": binary" in printed
    assert "Gated" not in printed and "Einsum" not in printed and "Weighted" not in printed


def test_quantizers(run, capsys):
    """What the page says of quantizers in the file is what the converter says."""
    run("docs/quantizers.md")
    assert capsys.readouterr().out.endswith(": binary\n")
    page = (ROOT / "docs" / "quantizers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (yes|no) \| (yes|no) \|$", page, re.MULTILINE)
    assert len(rows) == 9
    for name, as_input, as_kernel in rows:
        for quantizers, answer in (((name, "ste_sign"), as_input), (("ste_sign", name), as_kernel)):
            layer = kb.layers.QuantDense(4, input_quantizer=quantizers[0], kernel_quantizer=quantizers[1])
            (row,) = kb.deploy.binary_table(keras.Sequential([keras.Input((32,)), layer]))
            assert row.binary == (answer == "yes"), name


@pytest.mark.once
def test_fine_tuning(run):
    page = run("docs/fine_tuning.md")
    assert page["accuracy"] > 0.85
    assert all(row.binary for row in kb.deploy.binary_table(page["model"]))


@pytest.mark.once
@needs_runtime
def test_detection(run):
    page = run("docs/detection.md")
    assert page["accuracy"] > 0.95 and page["mean_overlap"] > 0.45
    assert all(row.binary for row in kb.deploy.binary_table(page["model"]))
