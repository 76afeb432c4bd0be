"""The fuzz target without libFuzzer: nodes that fuzzing found are run or refused, and nothing crashes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from binaryvit_runtime import include_path, library_path
from seeds import OPERATORS, hostile, seeds

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    """Returns a function from files to what became of each node."""
    if not shutil.which("c++"):
        pytest.skip("c++ isn't installed")
    program = tmp_path_factory.mktemp("fuzz") / "replay"
    library = library_path()
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", f"-I{include_path()}", f"-I{HERE.parents[1] / 'src'}"]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    sources = [HERE / "replay.cc", HERE / "fuzz_operator.cc"]
    done = subprocess.run(["c++", *flags, *sources, library, "-o", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def run(paths):
        done = subprocess.run([program, *paths], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr
        return [line.split(": ", 1)[1] for line in done.stdout.splitlines()]

    return run


def test_the_corpus_runs_or_is_refused(replay):
    paths = sorted((HERE / "corpus").iterdir())
    outcomes = replay(paths)
    assert len(outcomes) == len(paths)
    ends = {"ran", "not prepared", "too large to run"}
    for path, outcome in zip(paths, outcomes, strict=True):
        assert outcome in ends or outcome.split(": ")[0] in OPERATORS, f"{path.name}: {outcome}"
    # What the corpus is for: all operators run, and all refuse something.
    assert outcomes.count("ran") >= 50
    assert {outcome.split(": ")[0] for outcome in outcomes} >= set(OPERATORS)


@pytest.fixture
def replay_named(replay, tmp_path):
    """The same for nodes by name."""

    def run(nodes):
        for name, content in nodes.items():
            (tmp_path / name).write_bytes(content)
        return dict(zip(nodes, replay([tmp_path / name for name in nodes]), strict=True))

    return run


def test_seeds_run(replay_named):
    """Otherwise fuzzing would begin far from the operators' loops."""
    outcomes = replay_named(seeds())
    assert set(outcomes.values()) == {"ran"}, outcomes


def test_what_hosts_let_pass_is_refused(replay_named):
    nodes = hostile()
    outcomes = replay_named({name: content for name, (content, _) in nodes.items()})
    assert {name: outcome.split(": ", 1)[-1] for name, outcome in outcomes.items()} == {
        name: message for name, (_, message) in nodes.items()
    }
