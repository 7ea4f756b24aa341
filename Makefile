# Needs Python 3.10 or newer, git and make.

VENV ?= .venv
PYTHON ?= python3
TASK ?= classification

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.made-by-make

.PHONY: help demo test test-all bench lint clean

help:
	@echo "make demo      render a project into demo/ and train it; TASK=... for another task than classification"
	@echo "make test      run the tests"
	@echo "make test-all  run them for every task, also where tasks share the code"
	@echo "make bench     measure exactness, speed and memory, beside other trainers, into bench/results/ (over an hour)"
	@echo "make lint      check style, format and types"
	@echo "make clean     remove the environment and the caches (demo/ is yours and stays)"
	@echo
	@echo "They use the environment in $(VENV), made at the first call with $(PYTHON)."
	@echo "VENV=folder uses another one: it is left as it is if make did not make it."

# An environment without our stamp is somebody else's. The stamp is written first, with an old
# date: an installation that was cut short is then taken up again, and not mistaken for theirs.
$(STAMP): pyproject.toml constraints.txt
	@if [ -x "$(BIN)/python" ] && [ ! -f "$@" ]; then exit 0; fi; \
	$(PYTHON) -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "hf-template needs Python 3.10 or newer with its venv module: name one by PYTHON=..." >&2; \
		exit 1; \
	}; \
	mkdir -p "$(VENV)" && touch -t 200001010000 "$@" && \
	$(PYTHON) -m venv "$(VENV)" && \
	"$(BIN)/python" -m pip install -c constraints.txt -e '.[dev]' && \
	touch "$@"

# Each demo gets the next free number, so that nothing written into an earlier one is lost.
demo: $(STAMP)
	@n=1; while [ -e "demo/$$n" ]; do n=$$((n + 1)); done; \
	"$(BIN)/cookiecutter" . --no-input --default-config -o "demo/$$n" task="$(TASK)" && \
	cd "demo/$$n/my-project" && "$(BIN)/accelerate" launch train.py

test: $(STAMP)
	"$(BIN)/python" -m pytest -n 2 --dist worksteal

# The tests of what all tasks share run on one of them in `make test`: here on each.
test-all: $(STAMP)
	TEST_ALL=1 "$(BIN)/python" -m pytest -n 2 --dist worksteal

bench: $(STAMP)
	"$(BIN)/python" bench/exactness.py --json bench/results/exactness.json \
		--markdown bench/results/exactness.md
	"$(BIN)/python" bench/speed.py --write bench/results
	"$(BIN)/python" bench/scale.py --write bench/results
	"$(BIN)/python" bench/lora.py --write bench/results

# --config: the settings of <<cookiecutter.project_slug>>/pyproject.toml are for rendered projects.
lint: $(STAMP)
	"$(BIN)/ruff" check --config pyproject.toml .
	"$(BIN)/ruff" format --check --config pyproject.toml .
	"$(BIN)/mypy"

clean:
	if [ -f "$(STAMP)" ]; then rm -rf "$(VENV)"; fi
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis hf_template.egg-info
