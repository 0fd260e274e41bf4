# `make study` and `make test` need only Python >= 3.11, git and make: each makes the environment if it is not there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: study test slow campaigns lint types docs

study: $(READY)
	$(BIN)/matmix study quickstart

test: $(READY)
	$(BIN)/python -m pytest -q -n auto -m "not slow and not large and not gpu"

slow: $(READY)
	$(BIN)/python -m pytest -q -n auto -m "slow and not gpu" --durations=40

campaigns: $(READY)
	$(BIN)/python -m pytest -q -n auto -s -m large tests/campaigns

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)  # the site: build/site/index.html, readable from the disk
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "matmix needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[all,dev]"
	@touch $(READY)
