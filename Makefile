# make demo, make test, make lint; each sets up .venv first if it is not there.
PYTHON ?= python3
BIN := .venv/bin
# What is installed: all that tests and checks need, or what the demo needs alone, a quarter of the packages.
STAMP := .venv/.installed
DEMO_STAMP := .venv/.installed-demo
# Python compiles what it imports; compiling all that is there takes longer than the rest of the installation.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
# Real data sets, for tests that read them: given, or beside the checkout if they are there.
TICKETRY_DATA ?= $(wildcard $(abspath ../shared/data))
export TICKETRY_DATA
# Two tests at once, one thread each: torch's threads collapse when they share cores. A file stays with one process, so
# that what its fixtures train is trained once; tests/conftest.py puts the longest files first.
TWO := -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO)
MEASURED := OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(TWO)
# Files that no test imports count too.
UNIMPORTED := $(BIN)/coverage run --source=ticketry,ticketry_engine -m ticketry --help >/dev/null

.PHONY: demo demo-json test test-all coverage docs tutorials mutation lint format clean

demo: $(DEMO_STAMP)
	$(BIN)/ticketry demo

demo-json: $(DEMO_STAMP)
	@$(BIN)/ticketry demo --json

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

# The same tests, and which lines and branches they reach, in processes that they start too. Not in `make test`, which it
# slows down by more than a fifth where Python is older than 3.12.
coverage: $(STAMP)
	$(BIN)/coverage erase
	$(MEASURED) -m "not slow"; status=$$?; $(UNIMPORTED); \
	$(BIN)/coverage combine --quiet; $(BIN)/coverage report; exit $$status

# Hours; goes on where it was stopped. `make mutation ONLY=core/mask MINUTES=30 SAMPLE=60` does a part.
mutation: $(STAMP)
	OMP_NUM_THREADS=1 nice $(BIN)/python .ci/mutation/run.py $(ONLY) $(AGAIN) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SAMPLE),--sample $(SAMPLE))

# The documentation as a site in build/site, which opens from the disk. `make tutorials` runs the notebooks again.
docs: $(STAMP)
	$(INSTALL) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

tutorials: $(STAMP)
	$(INSTALL) -e '.[docs]'
	$(BIN)/python docs/site/notebooks.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	$(NEW_ENVIRONMENT)
	$(INSTALL) -e '.[dev]'
	@touch $@ $(DEMO_STAMP)

$(DEMO_STAMP): pyproject.toml constraints.txt
	$(NEW_ENVIRONMENT)
	$(INSTALL) -e '.[demo]'
	@touch $@

define NEW_ENVIRONMENT
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ticketry needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
endef

clean:
	rm -rf .venv .ticketry .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*
