# `make quickstart`, `make check` and `make test` set up all they need in a virtual environment: .venv, or for a PYTHON
# that is asked for one with its version, such as .venv-3.13.
PYTHON ?= python3
ifndef VENV
ifeq ($(origin PYTHON),file)
VENV := .venv
else
VENV := .venv-$(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
endif
endif
export VENV
BIN := $(VENV)/bin
# What pip warns of would bury what fails.
INSTALL := $(BIN)/python -m pip install -qq
# PyPI's PyTorch for x86-64 Linux is a build for CUDA of several GB, which no other name than this can bring.
TORCH := torch==2.13.0$(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),+cpu)

.PHONY: quickstart check test docs lint format bench wheels aar clean
.DEFAULT_GOAL := quickstart

$(BIN)/python:
	"$(PYTHON)" -m venv "$(VENV)"
	$(INSTALL) --upgrade pip

$(VENV)/.examples: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[examples]'
# Where there is no Larq Compute Engine, binaryvit-runtime runs what is converted, if there is a C++ compiler to build it.
	$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("larq_compute_engine"))' \
	  || $(INSTALL) ./runtime || true
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[test]'
	touch $@

$(VENV)/.runtime: $(VENV)/.test $(shell find runtime/include runtime/src -type f) $(wildcard runtime/*.* runtime/python/*/*.py)
	$(INSTALL) './runtime[test]'
	touch $@

# Where there is no such build, the tests on PyTorch are skipped, unless one was installed by hand.
$(VENV)/.torch: | $(VENV)/.test
	$(BIN)/python -c 'import torch' 2> /dev/null || $(INSTALL) '$(TORCH)' 2> /dev/null || true
	touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[docs]'
	touch $@

quickstart: $(VENV)/.examples
	$(BIN)/python examples/quickstart.py

# What to run before a commit; `make test` is the whole.
check: $(VENV)/.test
	$(BIN)/python tools/run_tests.py lint types fast

# TESTS: arguments of tools/run_tests.py, such as --again; the docs' part is skipped where MkDocs can't be installed.
test: $(VENV)/.test $(VENV)/.torch
	$(if $(TESTS),,$(MAKE) --silent $(VENV)/.docs || true)
	$(BIN)/python tools/run_tests.py $(TESTS)

# The site, in out/site.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

lint: $(VENV)/.test
	$(BIN)/python tools/run_tests.py lint types

format: $(VENV)/.test
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

bench: $(VENV)/.runtime
	for backend in tensorflow jax; do KERAS_BACKEND=$$backend $(BIN)/python tests/parity.py; done
	$(BIN)/python benchmarks/conversion.py
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python tools/show_resume.py tensorflow
	$(BIN)/python benchmarks/runtime.py
	$(BIN)/python benchmarks/runtime.py --image-size 32

# binaryvit-runtime for x86-64 and 64-bit ARM.
wheels: | $(BIN)/python
	PYTHON=$(BIN)/python runtime/wheels.sh dist

# binaryvit-runtime.aar for Android, and maven/, a repository that has it.
aar: | $(BIN)/python
	$(BIN)/python runtime/android/aar.py dist

clean:
	rm -rf .venv .venv-* $(VENV) out build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
