# PYTHON= names the interpreter, VENV= the environment's folder, PROFILE= the size of a reproduction.
PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= quick
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
# several tests at a time, one thread each
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: setup reproduce test test-slow bench bench-gpu lab docs format check clean help

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "There is no '$(PYTHON)' here. Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "Python 3.11, 3.12 or 3.13 is needed and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1): make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@if [ -n "$$(ls -A "$(VENV)" 2>/dev/null)" ] && [ ! -f "$(VENV)/pyvenv.cfg" ]; then echo "$(VENV) holds no environment: choose another VENV"; exit 1; fi
	@"$(PYTHON)" -m venv "$(VENV)" || { \
	  rm -rf "$(VENV)"; echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): some minutes the first time, mostly for PyTorch."
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '.[dev]' -c constraints.txt
	@touch $@

setup: $(STAMP) ## create the environment and install everything into it (the other targets do it when needed)

reproduce: $(STAMP) ## run the study headless: PROFILE=quick (default), smoke, ...
	@$(BIN)/rvlr reproduce --profile $(PROFILE) $(ARGS)

test: $(STAMP) ## run the tests, the notebooks with tiny settings among them, but for the slow ones
	@$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(STAMP) ## run the slow tests: several processes, killed ones, compilation, large models
	@$(PYTEST) -m slow $(ARGS)

bench: $(STAMP) ## measure speed and memory on this machine into PERFORMANCE.md: ARGS=--quick for a first look
	@$(BIN)/python -m benchmarks.run $(ARGS)

bench-gpu: $(STAMP) ## measure one GPU into benchmarks/results/gpu.json: ARGS=--tiny rehearses it on the CPU
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

lab: $(STAMP) ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab notebooks

docs: $(STAMP) ## build the static site of PROFILE's run into site/
	@$(BIN)/python docs/build.py runs/$(PROFILE) site

format: $(STAMP) ## sort imports and format code and notebooks
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

check: $(STAMP) ## lint code and notebooks, check their format and the library's types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean: ## remove the tools' caches; the environment and runs/ stay
	@rm -rf .mypy_cache .ruff_cache .pytest_cache build
	@find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Settings: PYTHON=$(PYTHON)  VENV=$(VENV)  PROFILE=$(PROFILE)  ARGS='more arguments for reproduce, test or bench'"
