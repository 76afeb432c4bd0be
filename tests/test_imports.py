"""Each part of the package imports only parts that stand before it, so there is no circle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "keras_binaryvit"
ORDER = [
    {"typing", "files", "images", "memory", "tables"},
    {"quantizers", "constraints"},
    {"layers"},
    {"models"},
    {"torch_checkpoints", "data"},
    {"optimizers", "metrics", "training"},
    {"deploy"},
    {"profile", "visualize"},
]


def imported(file):
    """Returns the parts of the package that `file` imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("keras_binaryvit."))


def test_every_part_has_a_place():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__", "__main__"} == set().union(*ORDER)


@pytest.mark.parametrize("place", range(len(ORDER)), ids=["-".join(sorted(parts)) for parts in ORDER])
def test_imports_only_what_stands_before(place):
    before = set().union(*ORDER[:place])
    for part in ORDER[place]:
        path = PACKAGE / part
        for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
            assert set(imported(file)) <= before | {part}, file.name
