# One command a verb, the same for people and for CI. Needs Python 3.11 or newer and make, nothing else.
# Arguments for the command behind a target go through ARGS: make demo ARGS="--seconds 20 --plain"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check format bench withdrawals chaos simulate fuzz mutants schemas clean

VENV ?= .venv
ARGS ?=
SEEDS ?= 1000
FIRST ?= 0
SEED ?=
SECONDS ?=
EVENTS ?=
BIN := $(VENV)/bin

# The first interpreter that runs and is new enough: one that is merely on the PATH may be a stub.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/runtime.stamp  ## A shop with its own small broker: watch events being filtered (ARGS="--seconds 20 --plain")
	@$(BIN)/celosia demo $(ARGS)

test: $(VENV)/dev.stamp  ## Run the tests, in two processes (ARGS="-k consent": in one)
	@$(BIN)/python -m pytest $(or $(ARGS),-n 2 --dist loadfile --no-loadscope-reorder)

check: $(VENV)/dev.stamp  ## Check format, style and types; changes nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/dev.stamp  ## Format the code and repair what can be repaired without thought
	@$(BIN)/ruff check --fix --exit-zero --quiet .
	@$(BIN)/ruff format .

bench: $(VENV)/dev.stamp  ## Measure throughput (ARGS for tests/bench/throughput.py)
	@$(BIN)/python -m tests.bench.throughput $(ARGS)

withdrawals: $(VENV)/dev.stamp  ## Who keeps an acknowledged withdrawal? Two hours (ARGS="--cells idle,load --trials 100")
	@$(BIN)/python -m tests.bench.withdrawals $(ARGS)

chaos: $(VENV)/dev.stamp  ## Hurt workers, brokers and links of a real cluster, then check (SECONDS=3600 EVENTS=1000000 SEED=7)
	@$(BIN)/python -m tests.chaos $(if $(SECONDS),--seconds "$(SECONDS)") $(if $(EVENTS),--events "$(EVENTS)") \
		$(if $(SEED),--seed "$(SEED)") $(ARGS)

simulate: $(VENV)/dev.stamp  ## Run the lanes on a simulated cluster (SEEDS=1000 FIRST=0), or show one run (SEED=17)
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed "$(SEED)",--seeds "$(SEEDS)" --first "$(FIRST)") $(ARGS)

fuzz: $(VENV)/fuzz.stamp  ## Fuzz everything that reads bytes, guided by coverage (SECONDS=60 for each reader)
	@$(BIN)/python -m tests.fuzz $(if $(SECONDS),--seconds "$(SECONDS)") $(ARGS)

mutants: $(VENV)/mutants.stamp  ## Change the pure core in small ways: is there a test for each? (ARGS="streams.decision.*")
	@$(BIN)/python -m tests.mutation.run $(ARGS)

schemas: $(VENV)/dev.stamp  ## Write the JSON Schemas and the tables of the README anew
	@$(BIN)/python -m streams.schemas $(ARGS)
	@$(BIN)/python -m tests.readme

clean:  ## Remove caches and build output (the environment stays: rm -r .venv removes it)
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .mutants
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment, two stamps: the demo installs what runs, everything else also the tools.
# Both are renewed when pyproject.toml changes, and worth nothing when the interpreter is gone.

$(shell test -x $(BIN)/python || rm -f $(VENV)/*.stamp)

$(VENV)/runtime.stamp: pyproject.toml $(BIN)/python
	@echo "Installing celosia into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml $(BIN)/python
	@echo "Installing celosia and its development tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/runtime.stamp

$(VENV)/fuzz.stamp $(VENV)/mutants.stamp: $(VENV)/%.stamp: $(VENV)/dev.stamp
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "celosia needs Python 3.11 or newer, and none was found on the PATH." \
		"Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "celosia needs Python 3.11 or newer; $(PYTHON) is older or does not run." >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
