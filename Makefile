# Needs Python 3.10 or newer, git and make.

VENV ?= .venv
PYTHON ?= python3
TASK ?= classification

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.made-by-make

.PHONY: help demo test test-all bench lint clean

help:
	@echo "make demo      render a project into demo/ and train it; TASK=... selects another task than classification"
	@echo "make test      run the tests; the tests of shared code run for one task only"
	@echo "make test-all  run all tests for every task, also with further old versions of cookiecutter"
	@echo "make bench     compare exactness, speed and memory with other trainers; write bench/results/ (over an hour)"
	@echo "make lint      check style, format and types"
	@echo "make clean     remove the environment and the caches, but not demo/"
	@echo
	@echo "These targets use the environment in $(VENV), which the first call creates with $(PYTHON)."
	@echo "VENV=folder selects another one, which is not changed unless make created it."

# An environment without the stamp file was not created by make, and is not changed. The stamp file is
# written first, with an old date, so that make repeats an interrupted installation.
$(STAMP): pyproject.toml constraints.txt
	@if [ -x "$(BIN)/python" ] && [ ! -f "$@" ]; then exit 0; fi; \
	$(PYTHON) -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "hf-template needs Python 3.10 or newer with its venv module: set PYTHON=..." >&2; \
		exit 1; \
	}; \
	mkdir -p "$(VENV)" && touch -t 200001010000 "$@" && \
	$(PYTHON) -m venv "$(VENV)" && \
	"$(BIN)/python" -m pip install -c constraints.txt -e '.[dev]' && \
	touch "$@"

# Each demo is rendered into a new numbered folder, so that the files of earlier demos are kept.
demo: $(STAMP)
	@n=1; while [ -e "demo/$$n" ]; do n=$$((n + 1)); done; \
	"$(BIN)/cookiecutter" . --no-input --default-config -o "demo/$$n" task="$(TASK)" && \
	cd "demo/$$n/my-project" && "$(BIN)/accelerate" launch train.py

test: $(STAMP)
	"$(BIN)/python" -m pytest -n 2 --dist worksteal

# `make test` runs the tests of shared code for one task only; `make test-all` runs these tests for each
# task.
test-all: $(STAMP)
	TEST_ALL=1 "$(BIN)/python" -m pytest -n 2 --dist worksteal

bench: $(STAMP)
	"$(BIN)/python" bench/exactness.py --json bench/results/exactness.json \
		--markdown bench/results/exactness.md
	"$(BIN)/python" bench/speed.py --write bench/results
	"$(BIN)/python" bench/scale.py --write bench/results
	"$(BIN)/python" bench/lora.py --write bench/results
	"$(BIN)/python" bench/saving.py --markdown bench/results/saving.md
	"$(BIN)/python" bench/start.py --write bench/results
	"$(BIN)/python" bench/prediction.py --write bench/results
	"$(BIN)/python" bench/endtoend.py --write bench/results

# Without --config, Ruff would check the files in <<cookiecutter.project_slug>>/ with the settings of the
# pyproject.toml in that folder, which are for rendered projects.
lint: $(STAMP)
	"$(BIN)/ruff" check --config pyproject.toml .
	"$(BIN)/ruff" format --check --config pyproject.toml .
	"$(BIN)/mypy"

clean:
	if [ -f "$(STAMP)" ]; then rm -rf "$(VENV)"; fi
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis hf_template.egg-info
