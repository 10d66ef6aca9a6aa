# make demo            set up .venv and train the digits experiment
# make test            set up .venv and run all tests
# make test-lowest     tests of every floor with the lowest versions of all dependencies, in .venv-lowest
# make test-newest     the same with the newest versions, in .venv-newest
# make lint            ruff, mypy and the floors
# make docs            the pages as a site, build/site/index.html; a warning is an error
# make kill            100 runs and 2 sweeps ended 220 times at random moments, in four ways, and resumed; 20 runs of
#                      two processes ended 100 times
# make plan            every experiment compiled for a TPU and a GPU that are not here
# PYTHON=python3.12 chooses an interpreter, which gets an environment of its own, .venv-python3.12.
# UV=uv installs packages by uv, which is faster than pip.
PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
UV ?=
# The command that installs packages into an environment.
install = $(if $(UV),$(UV) pip install --python,) $(1)/bin/python $(if $(UV),,-m pip install --disable-pip-version-check) --quiet

.PHONY: demo test test-lowest test-newest lint docs kill plan clean

demo: $(VENV)/.installed
	$(BIN)/foldax run experiments/supervised/digits.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

# gymnax allows jax below 0.12 only, so the newest versions are tested without it.
PACKAGES_lowest := -c constraints-lowest.txt -e '.[pytest,gymnasium,rl,equinox]'
PACKAGES_newest := --upgrade $(if $(UV),,--upgrade-strategy eager) -e '.[pytest,gymnasium,equinox]'
# A stamp for each week, so that the newest versions are those of this week.
INSTALLED_lowest := .venv-lowest/.installed
INSTALLED_newest := .venv-newest/.installed-$(shell date +%G-%V)
# Of each floor the tests that use other libraries most; DeprecationWarnings of old versions are theirs.
EVERY_FLOOR := tests/test_extras.py tests/test_options.py tests/data/test_sources.py \
	tests/data/test_conversion.py tests/models/adapters tests/models/layers/test_convolution.py tests/optim/test_schedules.py \
	tests/rl/test_environment.py tests/learners/test_losses.py \
	tests/rl/test_host_environment.py::test_a_stopped_run_resumes_and_says_what_is_lost \
	tests/engine/test_checkpoint.py tests/engine/test_compile_cache.py \
	"tests/engine/test_kill.py::test_ended_runs_resume_to_the_same_bits[2-kmeans]" \
	tests/evaluation/test_agents.py tests/plots/test_common.py tests/runs/test_folder.py tests/runs/test_log.py \
	tests/sweeps/test_report.py tests/inference/test_export.py::test_the_program_takes_raw_inputs_in_any_number \
	tests/inference/test_export.py::test_the_example_runs_without_a_file tests/test_cli.py::test_run_show_resume_and_reproduce \
	$(foreach law,purity resume sweep finishes,$(foreach learner,convolutional kmeans dqn,\
	"tests/laws/test_laws.py::test_learner_satisfies_the_law[$(learner)-$(law)]"))

test-lowest: $(INSTALLED_lowest)
test-newest: $(INSTALLED_newest)
test-lowest test-newest: test-%:
	.venv-$*/bin/python -m pytest -W ignore::DeprecationWarning $(EVERY_FLOOR)

$(INSTALLED_lowest): constraints-lowest.txt
$(INSTALLED_lowest) $(INSTALLED_newest): pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(call install,$(@D)) $(PACKAGES_$(@D:.venv-%=%))
	rm -f $(@D)/.installed*
	touch $@

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Pages keep their paths below the root of the repository, and with them their links.
PAGES := ':(glob)*.md' LICENSE docs research experiments
docs: $(VENV)/.installed-dev
	rm -rf build/pages
	mkdir -p build/pages
	git ls-files -z --cached --others --exclude-standard -- $(PAGES) | tar -cf - --null -T - | tar -xf - -C build/pages
	$(BIN)/zensical build --clean --strict

kill: $(VENV)/.installed-dev
	FOLDAX_KILLS=200 FOLDAX_SWEEP_KILLS=10 $(BIN)/python -m pytest -rP tests/engine/test_kill.py tests/sweeps/test_kill.py
	FOLDAX_PROCESS_KILLS=100 FOLDAX_PROCESS_DEVICES=4 $(BIN)/python -m pytest -n 0 -rP tests/runs/test_processes.py

plan: $(VENV)/.installed-dev
	$(call install,$(VENV)) -c constraints.txt -e '.[plan-tpu,plan-gpu]'
	FOLDAX_PLAN_EXPERIMENTS=all $(BIN)/python -m pytest -rP tests/engine/test_plan.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "foldax needs Python 3.11 to 3.13; choose one with PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call install,$(VENV)) -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(call install,$(VENV)) -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest build dist .pytest_cache .mypy_cache .ruff_cache
