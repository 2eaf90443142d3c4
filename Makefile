# Needs Python 3.11 or newer with pip; everything else goes into .venv. Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help demo test bench clean

help:
	@echo "make demo    train a small network, compress it to a quarter, heal it, write a report"
	@echo "make test    lint, types, import direction, tests and the examples of the documentation"
	@echo "make bench   speed and quality against other libraries, measured in one run"
	@echo "make clean   remove .venv and all caches"

demo: .venv/stamp
	@echo "demo: flatwing compress --example digits --budget 0.25 --heal 300"
	@$(BIN)/flatwing compress --example digits --budget 0.25 --heal 300 --overwrite

test: .venv/stamp
	@echo "test: ruff check"
	@$(BIN)/ruff check --quiet .
	@echo "test: ruff format --check"
	@$(BIN)/ruff format --quiet --check .
	@echo "test: pyright (types in src)"
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	@echo "test: lint-imports (rooms import one way)"
	@PYTHONUTF8=1 $(BIN)/lint-imports
	@echo "test: pytest (tests, and the examples in src and README.md)"
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

bench: .venv/stamp
	@echo "bench: benchmarks/factorize.py"
	@$(BIN)/python benchmarks/factorize.py
	@echo "bench: benchmarks/cpu_multiply.py (about 25 minutes)"
	@$(BIN)/python benchmarks/cpu_multiply.py
	@echo "bench: benchmarks/advise.py"
	@$(BIN)/python benchmarks/advise.py
	@echo "bench: benchmarks/fixed_support.py (about 4 minutes)"
	@$(BIN)/python benchmarks/fixed_support.py
	@echo "bench: benchmarks/permutations.py, max_margin.py, optimizer_step.py, late_sam.py (about 30 minutes)"
	@$(BIN)/python benchmarks/permutations.py
	@$(BIN)/python benchmarks/max_margin.py
	@$(BIN)/python benchmarks/optimizer_step.py
	@$(BIN)/python benchmarks/late_sam.py
	@echo "bench: benchmarks/optimizers.py (about 40 minutes; what is on file is not run again)"
	@$(BIN)/python benchmarks/optimizers.py

clean:
	@echo "clean: .venv, caches, build outputs"
	@rm -rf .venv build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.venv/stamp: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or newer, or set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: flatwing needs Python 3.11 or newer, $(PYTHON) is %d.%d; set PYTHON=..." % sys.version_info[:2])'
	@echo "setup: virtual environment in .venv"
	@$(PYTHON) -m venv .venv
	@echo "setup: installing flatwing and its development tools (minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
