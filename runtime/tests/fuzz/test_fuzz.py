"""The fuzz targets without libFuzzer: what fuzzing found runs or is refused, and nothing crashes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from binaryvit_runtime import include_path, library_path
from seeds import OPERATORS, graph_seeds, hostile, seeds

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    """Returns a function from a target and files to what became of each."""
    if not shutil.which("c++"):
        pytest.skip("c++ isn't installed")
    folder = tmp_path_factory.mktemp("fuzz")
    library = library_path()
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", f"-I{include_path()}", f"-I{HERE.parents[1] / 'src'}"]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    for target in ("operator", "graph"):
        sources = [HERE / name for name in ("replay.cc", "host.cc", f"fuzz_{target}.cc")]
        command = ["c++", *flags, *sources, library, "-o", folder / target]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def run(target, paths):
        done = subprocess.run([folder / target, *paths], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr
        return [line.split(": ", 1)[1] for line in done.stdout.splitlines()]

    return run


ENDS = {"ran", "not prepared", "too large to run"}
GRAPH_KERNELS = {"Pointwise", "FULLY_CONNECTED", "LceQuantize", "LceDequantize"}


@pytest.mark.parametrize("target, refuses", [("operator", set(OPERATORS)), ("graph", GRAPH_KERNELS)])
def test_the_corpus_runs_or_is_refused(target, refuses, replay):
    paths = sorted((HERE / f"corpus_{target}").iterdir())
    outcomes = replay(target, paths)
    assert len(outcomes) == len(paths)
    for path, outcome in zip(paths, outcomes, strict=True):
        assert outcome in ENDS or outcome.split(": ")[0] in refuses, f"{path.name}: {outcome}"
    # What the corpus is for: much runs, and all operators refuse something.
    assert outcomes.count("ran") >= 50
    assert {outcome.split(": ")[0] for outcome in outcomes} >= refuses


@pytest.fixture
def replay_named(replay, tmp_path):
    """The same for inputs by name."""

    def run(target, inputs):
        for name, content in inputs.items():
            (tmp_path / name).write_bytes(content)
        return dict(zip(inputs, replay(target, [tmp_path / name for name in inputs]), strict=True))

    return run


@pytest.mark.parametrize("target, make", [("operator", seeds), ("graph", graph_seeds)])
def test_seeds_run(target, make, replay_named):
    """Otherwise fuzzing would begin far from the operators' loops."""
    outcomes = replay_named(target, make())
    assert set(outcomes.values()) == {"ran"}, outcomes


def test_what_hosts_let_pass_is_refused(replay_named):
    nodes = hostile()
    outcomes = replay_named("operator", {name: content for name, (content, _) in nodes.items()})
    assert {name: outcome.split(": ", 1)[-1] for name, outcome in outcomes.items()} == {
        name: message for name, (_, message) in nodes.items()
    }
