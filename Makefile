# make demo            set up .venv and train the digits experiment
# make test            set up .venv and run all tests
# make lint            ruff, mypy and the floors
# make kill            100 runs and 2 sweeps ended 220 times at random moments, in four ways, and resumed
# PYTHON=python3.12 chooses an interpreter, which gets an environment of its own, .venv-python3.12.
PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin

.PHONY: demo test lint kill clean

demo: $(VENV)/.installed
	$(BIN)/foldax run experiments/supervised/digits.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

kill: $(VENV)/.installed-dev
	FOLDAX_KILLS=200 FOLDAX_SWEEP_KILLS=10 $(BIN)/python -m pytest -rP tests/engine/test_kill.py tests/sweeps/test_kill.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "foldax needs Python 3.11 to 3.13; choose one with PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
