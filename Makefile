# make demo   runs a bundled scenario and draws its figures
# make test   what CI runs: lint, types, tests, doctests
# Needs Python 3.11 or newer and a package index; everything goes into .venv.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
DEMO := runs/demo

.PHONY: setup demo test bench golden check-plugin clean
.DEFAULT_GOAL := test

setup: .venv/.installed-dev

# Each stamp is as new as the last installation, so nothing is installed again until pyproject.toml changes.
.venv/.created:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: pyproject.toml .venv/.created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/.installed-dev: pyproject.toml .venv/.created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .venv/.installed

demo: .venv/.installed
	$(BIN)/kvsim run scenarios/burstgpt.yaml --out $(DEMO) --overwrite
	$(BIN)/kvsim plot $(DEMO)

# The workers share the cores already.
test: export OPENBLAS_NUM_THREADS ?= 1
test: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

bench: .venv/.installed-dev
	$(BIN)/python -m tests.bench

golden: .venv/.installed-dev
	$(BIN)/python -m tests.golden

check-plugin: .venv/.installed
	@test -n "$(P)" || { echo "name a policy: make check-plugin P=package.module:Class" >&2; exit 2; }
	$(BIN)/python -m kvsim.testing $(P)

clean:
	rm -rf .venv runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
