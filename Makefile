# Thin names over real commands. Everything runs in the project's own .venv.
#   make demo    from a prompt to a picture, through the real gateway and services
#   make test    every check and every test
#   make check   format, lint, types, import contracts, proto lint and drift
#   make bench   the benchmarks, one after the other; results in benchmarks/results/
#   make soak    ten minutes of load with random cancels
#   make chaos   accounts stay exact while gateways, Valkey and PostgreSQL are killed
#   make gpu-check  correctness and speed on a CUDA device

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= a red apple
# At most so many processes share the tests, one a core: each starts the servers that it needs.
WORKERS ?= 4
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

SHELL := /bin/bash

# $(call benchmark,NAME,ARGUMENTS,SUFFIX): the table for people; the last line, JSON, is kept.
define benchmark
	set -o pipefail; mkdir -p .cache benchmarks/results && \
	  $(BIN)/python -m benchmarks.$(1) $(2) | tee .cache/benchmark.txt && \
	  tail -n 1 .cache/benchmark.txt > benchmarks/results/$(1)$(3).json
endef

.PHONY: demo test check lint types pytest proto bench soak chaos gpu-check clean

demo: $(VENV)/.local
	$(BIN)/limner demo "$(PROMPT)" --output demo.png

# The checks run beside the tests, which often wait; what they print comes in one piece.
test: lint
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target types pytest

check: lint types

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m proto.lint

# The plus sign lets its output through at once.
pytest: $(VENV)/.dev
	+$(BIN)/python -m pytest -q --numprocesses=logical --maxprocesses=$(WORKERS) \
	  --dist=worksteal $(PYTEST_ARGS)

proto: $(VENV)/.dev
	$(BIN)/python -m proto.generate

bench: $(VENV)/.dev
	$(call benchmark,denoiser,models/limner-emoji)
	$(call benchmark,reproducibility,models/limner-emoji)
	$(call benchmark,gateway_hop)
	$(call benchmark,inflight,--plot docs/inflight.svg)
	$(call benchmark,upscale)
	$(call benchmark,admission)
	$(call benchmark,ledger)

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m soak --timeout 3600
	$(call benchmark,soak)

chaos: $(VENV)/.dev
	$(call benchmark,chaos)

gpu-check: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m gpu
	$(call benchmark,denoiser,models/limner-emoji,-gpu)
	$(call benchmark,inflight,,-gpu)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Limner needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is incomplete. On Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.local: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing the suite (a minute or two the first time) …"
	$(INSTALL) --editable '.[local]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing the suite and its development tools (a few minutes the first time) …"
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.local
