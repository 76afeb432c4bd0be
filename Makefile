# `make quickstart` and `make test` set up all they need in a virtual environment of their own.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint format bench wheels clean
.DEFAULT_GOAL := quickstart

$(VENV)/.examples: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[examples]'
	touch $@

$(VENV)/.test: $(VENV)/.examples
	$(BIN)/pip install --quiet -e '.[test]'
	touch $@

$(VENV)/.runtime: $(VENV)/.test $(wildcard runtime/*.* runtime/include/* runtime/src/* runtime/python/*/*.py)
	$(BIN)/pip install --quiet './runtime[test]'
	touch $@

quickstart: $(VENV)/.examples
	$(BIN)/python examples/quickstart.py --resume

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint $(VENV)/.runtime
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -n 2
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 tests/layers tests/models tests/test_quantizers.py tests/checkpoints
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 $(addprefix tests/deploy/test_,fold.py freeze.py inference.py lower.py)
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 tests/test_optimizers.py \
		$(addprefix tests/training/test_,losses.py distiller.py monitoring.py checkpoints.py)
	cd runtime && $(abspath $(BIN))/python -m pytest -n 2

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.runtime
	for backend in tensorflow jax; do KERAS_BACKEND=$$backend $(BIN)/python tests/parity.py; done
	$(BIN)/python tests/bench_conversion.py
	$(BIN)/python tests/bench_training.py
	$(BIN)/python tests/bench_scaling.py
	$(BIN)/python tests/show_resume.py tensorflow
	$(BIN)/python tests/bench_runtime.py

# binaryvit-runtime for x86-64 and 64-bit ARM.
wheels:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	PYTHON=$(BIN)/python runtime/wheels.sh dist

clean:
	rm -rf $(VENV) out build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
