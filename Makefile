# Everything sets up its own environment in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= quickstart
TORCH ?= torch==2.13.0
# without an NVIDIA GPU: torch's CPU build, where pip's configuration knows one
NO_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo yes)
# what an installation is built from; Python files are read where they are
BUILT_FROM := pyproject.toml setup.py edgetie/kernels/build.py $(wildcard edgetie/kernels/src/*)

.PHONY: quickstart test fast lint docs bench wheels clean

quickstart: $(VENV)/.installed  ## the whole journey on a real model
	$(BIN)/edgetie quickstart --output $(OUTPUT)

test: $(VENV)/.tested lint  ## linting, types and all tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

fast: $(VENV)/.tested  ## the tests to run while working
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.tested  ## the site: Markdown pages and docstrings
	$(BIN)/python -m sphinx --quiet --fail-on-warning -b html docs docs/_build

bench: $(VENV)/.installed  ## edgetie against its peers: one table
	$(BIN)/python benchmarks/peers.py

wheels: $(VENV)/.tested  ## for Linux, macOS and Windows, in dist/
	for platform in $$($(BIN)/python -c \
	  "from edgetie.kernels.build import ZIG_TARGETS; print(*ZIG_TARGETS)"); do \
	  EDGETIE_PLATFORM=$$platform $(BIN)/python -m pip wheel --quiet --no-deps \
	    --no-build-isolation --wheel-dir dist . || exit; done

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: $(BIN)/python
	$(if $(NO_GPU),$(BIN)/python -m pip install --quiet "$(TORCH)+cpu" 2>/dev/null ||) \
	  $(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(BUILT_FROM)
	$(BIN)/python -m pip install --quiet --editable ".[export,plot]"
	touch $@

$(VENV)/.tested: $(VENV)/.torch $(BUILT_FROM)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(OUTPUT) docs/_build build dist
