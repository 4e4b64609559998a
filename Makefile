# The same checks for everyone: CI runs .ci/run, which does what `make check` does in a fresh
# environment. PYTHON is the interpreter of the environment that fieldmark[test,weights] is in.
PYTHON ?= python

.PHONY: check lint fix test docs

check: lint test

lint:
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as lint; lint()"
	$(PYTHON) scripts/make_docs.py --check
	$(PYTHON) scripts/reliability_page.py --check

fix:
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

test:
	$(PYTHON) -m pytest -n auto

docs:
	$(PYTHON) scripts/make_docs.py
	$(PYTHON) scripts/reliability_page.py
