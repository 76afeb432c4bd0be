"""What all tests share: how they compile, how they run scripts, and the option `--perturb`."""

import importlib
import os
import runpy
import sys
from pathlib import Path

import perturbation
import pytest

CONVERTERS = Path(__file__).parents[1] / "converters"


def pytest_addoption(parser):
    parser.addoption("--perturb", action="store_true", help=perturbation.__doc__.splitlines()[0])


def pytest_configure(config):
    """Runs before a backend is imported, and the processes that tests start inherit it."""
    # XLA compiles quickly rather than well, and each program once: most of the time of the tests goes to compilation.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    distributes = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")  # runs no tests itself
    if config.getoption("perturb") and not distributes:
        perturbation.install()
        converting = importlib.import_module("keras_binaryvit.deploy.convert")
        converting.convert_frozen = perturbation.unperturbed(converting.convert_frozen)


@pytest.fixture
def run_converter(monkeypatch, capsys):
    """Runs a converter's script in this process; returns what it printed, or raises SystemExit."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(CONVERTERS / script), run_name="__main__")
        return capsys.readouterr().out

    return run
