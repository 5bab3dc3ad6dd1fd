# Everything runs from `.venv`, which `deploy/setup_venv.py` makes. `make` alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup model demo test lint clean constraints

BIN := .venv/bin
PYTEST_ARGS ?=
export TORCH_INDEX_URL ALLOW_CUDA

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 22
	@echo "Set-up is part of demo and test. Needed on the machine: Python 3.11 or newer (PYTHON=... picks one), git, make."

setup:  ## make .venv with everything installed (quick when nothing changed)
	@for python in "$(PYTHON)" python3 python3.11 python3.12 python3.13; do \
		if [ -n "$$python" ] && "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			exec "$$python" deploy/setup_venv.py; \
		elif [ -n "$$python" ] && [ "$$python" = "$(PYTHON)" ]; then \
			echo "PYTHON=$(PYTHON) is not a Python 3.11 or newer that runs" >&2; exit 1; \
		fi; \
	done; \
	echo "no Python 3.11 or newer found (tried python3, python3.11, python3.12, python3.13); name one with PYTHON=/path/to/python" >&2; exit 1

model: setup  ## fetch the small model (SmolLM2-135M-Instruct, 93 MB, once)
	@$(BIN)/gradlens models fetch smollm2

demo: setup  ## all set-up, then the demo: fine-tune, watch concepts being learned, suppress one, report
	@$(BIN)/gradlens demo

test: model  ## all set-up, then the tests (PYTEST_ARGS=... is passed on)
	@$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: setup  ## ruff: rules and formatting
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

constraints:  ## install the newest versions allowed by pyproject.toml, write constraints.txt
	@python3 deploy/setup_venv.py --update-constraints

clean:  ## delete .venv, build products and caches (runs/ stays)
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
