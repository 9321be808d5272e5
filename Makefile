# Two commands do all the set-up: `make demo` and `make test`. Everything runs in .venv, made from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit test-all lint types proto docs bench labs chaos clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

setup: ## make .venv from the pinned constraints (TORCH_INDEX=URL for another build of torch, PYTHON=... for another interpreter)
	@PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" tools/setup.sh

demo: setup ## pretrain a tiny model and tune it on two nodes, through the real service; under 3 minutes
	@$(BIN)/python -P -m luthier.demo $(ARGS)

test: setup ## what CI runs: lint, types, imports, contract, docs and every suite at small counts
	@$(BIN)/python tools/check.py $(ARGS)

test-unit: setup ## the loop while editing: unit tests, seconds
	@$(BIN)/pytest tests/unit $(ARGS)

test-all: setup ## slow suites and full counts too
	@$(BIN)/python tools/check.py --all $(ARGS)

lint: setup ## fix what ruff can fix, format, and check who imports whom
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/lint-imports --no-logo

types: setup ## strict mypy
	@$(BIN)/mypy

proto: setup ## regenerate src/luthier/v1, lint the contract, refuse breaking changes
	@$(BIN)/python tools/proto.py generate && $(BIN)/python tools/proto.py check

docs: setup ## regenerate the pages of docs/ that come from code
	@$(BIN)/python tools/docs.py

bench: setup ## side-by-side measurements; writes bench/results/
	@for script in bench/*.py; do echo "== $$script" && $(BIN)/python -P "$$script" $(ARGS) || exit 1; done

labs: setup ## small experiments, one per method; writes labs/results/
	@for script in labs/*.py; do if [ -e "$$script" ]; then $(BIN)/python -P "$$script" $(ARGS) || exit 1; else echo "no labs yet, see labs/README.md"; fi; done

chaos: setup ## faults of every kind at full counts (tests marked chaos)
	@LUTHIER_FULL_COUNTS=1 $(BIN)/pytest -m chaos --timeout 7200 $(ARGS)

clean: ## remove .venv, caches, build products and the demo's state
	@rm -rf .venv build dist .demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis src/luthier.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
