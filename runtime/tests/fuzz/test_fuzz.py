"""The fuzz targets without libFuzzer: what fuzzing found runs or is refused, nothing crashes, and all kernels agree."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from binaryvit_runtime import include_path, library_path
from conftest import available_kernels
from seeds import OPERATORS, graph_seeds, hostile, seeds

HERE = Path(__file__).parent


# The graph target, whose first computed byte is another one with other kernels than the scalar ones.
FAULTY = """
#include "host.h"
namespace binaryvit::fuzz { Result RightResult(Bytes bytes, bool is_oracle); }
#define RunGraph RightResult
#include "fuzz_graph.cc"
#undef RunGraph

binaryvit::fuzz::Result binaryvit::fuzz::RunGraph(Bytes bytes, bool is_oracle) {
  Result result = RightResult(bytes, is_oracle);
  if (!is_oracle && !result.values.empty()) result.values[0] ^= 1;
  return result;
}
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Returns a function that runs a target with files."""
    if not shutil.which("c++"):
        pytest.skip("c++ isn't installed")
    folder = tmp_path_factory.mktemp("fuzz")
    library = library_path()
    (folder / "fuzz_faulty.cc").write_text(FAULTY)
    includes = [f"-I{path}" for path in (include_path(), HERE.parents[1] / "src", HERE)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    shared = [HERE / "replay.cc", HERE / "host.cc"]
    for target, where in ("operator", HERE), ("graph", HERE), ("faulty", folder):
        command = [
            "c++",
            "-std=c++17",
            "-O1",
            "-Wall",
            "-Wextra",
            *includes,
            *shared,
            where / f"fuzz_{target}.cc",
            library,
            "-o",
            folder / target,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return lambda target, paths: subprocess.run(
        [folder / target, *paths], capture_output=True, text=True, env=environment
    )


@pytest.fixture
def replay(start):
    """Returns a function from a target and files to what became of each."""

    def run(target, paths):
        done = start(target, paths)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr
        return [line.split(": ", 1)[1] for line in done.stdout.splitlines()]

    return run


ENDS = {"ran", "not prepared", "too large to run"}
EMBEDDING = {"CONV_2D", "FULLY_CONNECTED"}  # which the host keeps where SSE is the best
GRAPH_KERNELS = {"Pointwise", "MEAN", *EMBEDDING, *OPERATORS}


@pytest.mark.parametrize("target, refuses", [("operator", set(OPERATORS)), ("graph", GRAPH_KERNELS)])
def test_the_corpus_runs_or_is_refused(target, refuses, replay):
    paths = sorted((HERE / f"corpus_{target}").iterdir())
    outcomes = replay(target, paths)
    assert len(outcomes) == len(paths)
    for path, outcome in zip(paths, outcomes, strict=True):
        assert outcome in ENDS or outcome.split(": ")[0] in refuses, f"{path.name}: {outcome}"
    # What the corpus is for: much runs, and all operators refuse something.
    assert outcomes.count("ran") >= 50
    needed = refuses if set(available_kernels()) - {"scalar", "sse"} else refuses - EMBEDDING
    assert {outcome.split(": ")[0] for outcome in outcomes} >= needed


def test_the_oracle_sees_a_wrong_bit(start, tmp_path):
    (tmp_path / "graph").write_bytes(graph_seeds()["transformer"])
    done = start("faulty", [tmp_path / "graph"])
    assert done.returncode != 0 and "The scalar kernels compute something else, from byte 0 of" in done.stderr


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
    assert {name: outcome for name, outcome in outcomes.items() if outcome != "ran"} == {}


def test_what_hosts_let_pass_is_refused(replay_named):
    nodes = hostile()
    outcomes = replay_named("operator", {name: content for name, (content, _) in nodes.items()})
    assert {name: outcome.split(": ", 1)[-1] for name, outcome in outcomes.items()} == {
        name: message for name, (_, message) in nodes.items()
    }
