# scripts/check.py has the list of checks; CI and the hook run the same. PYTHON is the interpreter of
# the environment that fieldmark[test,weights] is in.
PYTHON ?= python

.PHONY: check lint fix test coverage docs

check:
	$(PYTHON) scripts/check.py

lint:
	$(PYTHON) scripts/check.py lint types

test:
	$(PYTHON) scripts/check.py tests

coverage:
	$(PYTHON) scripts/check.py tests --coverage

fix:
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

docs:
	$(PYTHON) scripts/make_docs.py
	$(PYTHON) scripts/reliability_page.py
