# make demo   audit tiny models on real text, no network needed (minutes on 2 cores)
# make test   lint, types, import levels, the whole suite
# make test-methods   every unlearning method on every family and on 8 devices (half an hour)
# make docs   the documentation as a site, in site/; a broken link is an error
# make dist   wheel and source distribution, in dist/, checked
# make tutorials   run the notebooks again and keep their outputs
# All create .venv when it is absent; PYTHON=... chooses the interpreter.

PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= demo,test
OUT    ?= runs/demo

BIN := $(VENV)/bin
comma := ,
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
DOCS_STAMP := $(VENV)/.installed-docs

.PHONY: demo test test-methods lint types suite docs dist tutorials
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n '1,7s/^# //p' Makefile

$(VENV)/.installed-%: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python >= 3.11 is needed, {sys.executable} is {v.major}.{v.minor}; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(subst -,$(comma),$*)]'
	touch $@

demo: $(STAMP)
	$(BIN)/lt-mia demo --out $(OUT)

test: lint types docs suite

test-methods: $(STAMP)
	LT_MIA_EVERY_METHOD=1 LT_MIA_TEST_DEVICES=8 $(BIN)/python -m pytest -q -n 2 tests/unlearning/test_train.py $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

suite: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(VENV)/.installed-dist
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

tutorials: $(STAMP) $(DOCS_STAMP)
	$(BIN)/python docs/run_tutorials.py
