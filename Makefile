# `make quickstart` and `make test` do all of their set-up themselves.
PYTHON ?= python3
BIN := .venv/bin
# Two processes on two cores: threads of their own would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

.PHONY: quickstart test test-slow test-exhaustive lint docs clean

quickstart: .venv/.installed
	$(BIN)/glscl quickstart

test: .venv/.installed
	$(PYTEST) --dist loadfile -m "not slow and not exhaustive"

test-slow: .venv/.installed
	$(PYTEST) --dist loadfile -m slow

test-exhaustive: .venv/.installed
	$(PYTEST) --dist loadfile -m exhaustive

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/vulture
	$(BIN)/python tools/measure.py --check
	$(BIN)/python tools/check_docs.py
	$(MAKE) docs
	$(BIN)/mypy

# The site, into build/site: 5 s of CPU. Any warning fails. The variable: the theme advertises its successor.
docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
