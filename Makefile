# make demo, make test, make lint; each sets up .venv first if it is not there.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Real data sets, for tests that read them: given, or beside the checkout if they are there.
TICKETRY_DATA ?= $(wildcard $(abspath ../shared/data))
export TICKETRY_DATA
# Two tests at once, one thread each: torch's threads collapse when they share cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

DEMO := search iterative --task digits --rewind 3% --density 0.05 --replicates 3 --verify --bench

.PHONY: demo demo-json test test-all lint format clean

demo: $(STAMP)
	$(BIN)/ticketry $(DEMO)

demo-json: $(STAMP)
	@$(BIN)/ticketry $(DEMO) --json

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ticketry needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $@

clean:
	rm -rf .venv .ticketry .pytest_cache .mypy_cache .ruff_cache
