# One command for each thing to do here. `make` alone lists them.
#
# A fresh machine needs Python 3.11 or later with pip, and make. Everything else goes into .venv; another interpreter is
# chosen with `make PYTHON=python3.12 ...`. Whoever needs no pinned versions can `pip install -e '.[dev]'` anywhere.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests start real processes and wait for them more than they compute: more workers than two processors.
TEST_JOBS ?= 4
PYTEST_ARGS ?=
DEMO_STORE := sqlite:///demo/sweeps.db
# These take hours and need LCBench's model: see benchmarks/README.md.
BENCHMARKS = $(filter-out benchmarks/quality.py benchmarks/multifidelity.py,$(sort $(wildcard benchmarks/[a-z]*.py)))

# Command sweeps and the tools find the environment's python first, activated or not.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# `make -j` must not run two installations into one environment.
.NOTPARALLEL:
.PHONY: help demo test lint check-format types imports bench docs constraints clean
# Made by pattern, so make would take them for intermediate files and remove them.
.PRECIOUS: $(VENV)/.installed-%

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-examples  ## Sweep 20 neural networks on handwritten digits, show the five best; Ctrl-C and again resumes
	@mkdir -p demo
	$(BIN)/metta sweep run examples/digits_mlp.py --store $(DEMO_STORE) --max-trials 20
	$(BIN)/metta sweep best --store $(DEMO_STORE) --top 5

test: lint  ## All checks, then all tests (PYTEST_ARGS="-k store" for some, TEST_JOBS=0 for one process)
	$(BIN)/pytest -n $(TEST_JOBS) $(PYTEST_ARGS)

lint: check-format types imports  ## Style, types and the direction of imports

check-format: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports

bench: $(VENV)/.installed-benchmarks  ## Run every benchmark in turn, but for the two on LCBench
	@for script in $(BENCHMARKS); do echo "==> $$script"; $(BIN)/python $$script || exit 1; done

docs: $(VENV)/.installed-dev  ## Write docs/cli.md anew: every command, tried in a terminal (tmux) and in a pipe
	$(BIN)/python scripts/cli_page.py

constraints:  ## Write constraints.txt anew: the newest versions that fit pyproject.toml, from a fresh environment
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install '.[dev,examples,benchmarks,pandas,nvidia]'
	@{ grep '^#' constraints.txt; build/constraints/bin/python -m pip freeze --exclude metta-sweep; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:  ## Remove what make has made: .venv, build, caches, and demo with its sweeps
	rm -rf $(VENV) build dist demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .benchmarks .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, and one stamp for each extra installed into it: a second `make test` installs nothing.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "metta-sweep needs Python 3.11 or later; '$(PYTHON)' is missing or older. Name another: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "==> Using the environment in $(VENV)"; \
	else \
	  echo "==> Creating the environment in $(VENV)"; \
	  rm -rf $(VENV); \
	  $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	    echo "==> python -m venv does not work here (often ensurepip is missing): virtualenv does it instead"; \
	    rm -rf $(VENV); \
	    $(PYTHON) -m pip install --target build/virtualenv --upgrade virtualenv && \
	    PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv $(VENV); \
	  }; \
	fi
	@touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt $(VENV)/.created
	@echo "==> Installing metta-sweep[$*] and what it needs into $(VENV): a minute or two the first time, then kept"
	$(BIN)/python -m pip install -c constraints.txt -e '.[$*]'
	@touch $@
