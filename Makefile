# make demo   audit tiny models on real text, no network needed (minutes on 2 cores)
# make test   lint, types, import levels, the whole suite
# Both create .venv when it is absent; PYTHON=... chooses the interpreter.

PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= demo,test
OUT    ?= runs/demo

BIN := $(VENV)/bin
comma := ,
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: demo test lint types suite clean-venv
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n '1,3s/^# //p' Makefile

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python >= 3.11 is needed, {sys.executable} is {v.major}.{v.minor}; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	touch $@

demo: $(STAMP)
	$(BIN)/lt-mia demo --out $(OUT)

test: lint types suite

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

suite: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)
