# `make run` makes the environment and runs the press; `make test` checks everything.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help run quick test lint unit bench site clean

help:
	@echo "make run    make the environment, then: modelpress run"
	@echo "make quick  the same with one model and two recipes"
	@echo "make test   lint, types, layers, all tests"
	@echo "make bench  a fresh run in a scratch folder: where the time goes"
	@echo "make clean  remove the work folder and the environment"

# One pip call with torch pinned among the rest: a second call could bring in another torch.
$(VENV)/.press: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[press]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[press,export,ray,postgresql,dev]'
	touch $@ $(VENV)/.press

run: $(VENV)/.press
	$(BIN)/modelpress run

quick: $(VENV)/.press
	$(BIN)/modelpress run --quick

bench: $(VENV)/.press
	$(BIN)/modelpress bench

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.dev
	$(BIN)/pytest -n 2 --dist loadgroup -m "not integration"

test: lint
	$(BIN)/pytest -n 2 --dist loadgroup

clean:
	rm -rf press build dist $(VENV) *.egg-info
