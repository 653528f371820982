# Two commands are all a newcomer needs:  make demo   and   make test.
# Each sets up everything itself in .venv with python3 -m venv and pip.
#
#   TORCH_INDEX   package index to take PyTorch from (empty: pip's own). On Linux without a GPU point it at the "CPU" index
#                 of PyTorch's "Get Started" page; otherwise pip may bring several GB of CUDA libraries, which also work.
#   TORCH         requirement for PyTorch (default: the version that constraints.txt pins)
#   PYTHON        the interpreter to build .venv with (3.11 or newer)

PYTHON ?= python3
TORCH_INDEX ?=
TORCH ?= $(shell grep '^torch==' constraints.txt)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
JOBS ?= 2

.PHONY: demo test test-all lint format bench claims docs clean
.DEFAULT_GOAL := help

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# One stamp per set of extras; a changed pyproject.toml or constraints.txt installs again.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bloomery needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH)$(if $(TORCH_INDEX), from $(TORCH_INDEX)) ..."
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@touch $@

$(VENV)/.installed-%: $(VENV)/.torch pyproject.toml
	@echo "installing bloomery[$*] ..."
	@$(PIP) --constraint constraints.txt --editable ".[$*]"
	@touch $@

demo: $(VENV)/.installed-web ## the main job: crawl, curate, train, tune, evaluate, export; writes a report (minutes)
	$(BIN)/bloomery run end_to_end --preset cpu

test: $(VENV)/.installed-dev ## the test suite (minutes)
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

test-all: $(VENV)/.installed-dev ## every test, the slow ones too
	$(BIN)/python -m pytest -n $(JOBS)

lint: $(VENV)/.installed-dev ## lint, formatting, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev ## measure against the peers (installed beside us in .venv-peers); updates docs/benchmarks.md
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check "scrapy>=2.11" "datatrove[io,processing]>=0.4" "datasketch>=1.6" "rensa>=0.3" "pydivsufsort>=0.0.18" "spacy>=3.8" lxml_html_clean
	$(BIN)/python benchmarks/run_all.py --peer-python .venv-peers/bin/python

claims: $(VENV)/.installed-web ## run every recipe's claim on this machine, then list what holds
	$(BIN)/bloomery claims --run

docs: $(VENV)/.installed-docs ## build the documentation site; a warning is an error
	$(BIN)/python -m mkdocs build --strict --quiet

clean: ## remove what the build made (not runs/)
	rm -rf $(VENV) .venv-peers site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
