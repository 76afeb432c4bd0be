"""The examples of docs/ run."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page, layers", [("adding_a_layer.md", [["Convolution"], ["Dense"]])])
def test_examples(page, layers, capsys):
    """In one process, block after block; they print the classes of the frozen models' layers."""
    namespace = {"__name__": "docs"}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S):
        exec(compile(block, page, "exec"), namespace)
    printed = capsys.readouterr().out
    for names in layers:
        assert all(f"'{name}'" in printed for name in names)
    assert ": binary" in printed and "Gated" not in printed and "Einsum" not in printed and "Weighted" not in printed
