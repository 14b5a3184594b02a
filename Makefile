# Two commands: `make figures` (set-up, notebooks, figures) and `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
PROFILE ?= quick
VENV := .venv
TERRATORCH := .venv-terratorch
LATEST := .venv-latest
PY := $(VENV)/bin/python
UV_VERSION := 0.13.9
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9]*.ipynb))
RUNS := $(or $(PEFTLIB_RUNS),runs)/$(PROFILE)
SOURCES := $(shell find peftlib data/results data/reference -name '*.py' -o -name '*.csv') requirements.lock
# 04 makes runs, whose last digits are a machine's own: nothing for nbval.
STRIPPED := notebooks/04_full_experiments.ipynb
QUIET := OMP_NUM_THREADS=1 TQDM_DISABLE=1
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=300 --nbval-sanitize-with tests/nbval_sanitize.cfg
PARALLEL := -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help env figures figures-all test test-slow test-latest test-terratorch bench lab lock site size clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

env: $(VENV)/.ready  ## set up .venv from requirements.lock

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "peftlib needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Use make PYTHON=python3.12"; exit 1; }
	@echo "setting up $(VENV) from requirements.lock (about 6 GB with PyTorch's CUDA libraries) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) && \
	  $(VENV)/bin/uv pip sync --quiet --python $(PY) --require-hashes requirements.lock || \
	  $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

data/weights/dinov2_small.safetensors: | env
	@$(PY) -m peftlib weights

# A notebook runs again when it, the package, committed rows or numbers, or a pin is newer than its executed copy.
$(RUNS)/%.ipynb: notebooks/%.ipynb $(SOURCES) | env data/weights/dinov2_small.safetensors
	@$(PY) -m peftlib run --profile $(PROFILE) $<

# One thread each, a notebook a core: faster, and figures are the same whatever the number of cores.
figures: env data/weights/dinov2_small.safetensors  ## run the notebooks (PROFILE=quick) and write figures/
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --output-sync --jobs $$(nproc) $(NOTEBOOKS:notebooks/%=$(RUNS)/%)
	@echo "Which input, which method? $(or $(PEFTLIB_FIGURES),figures)/quick/05_grid.png"

figures-all: figures  ## also those that are drawn from committed rows, from runs made here
	@$(PY) -m peftlib run --profile $(PROFILE) --set rerun=true $(shell grep -l 'rerun: bool' $(NOTEBOOKS))

# Three at once, so that no core waits: the notebooks (in one process: a kernel's cells have an order), mypy, the tests.
test: env data/weights/dinov2_small.safetensors  ## ruff, mypy, pytest, nbval
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check --quiet .
	@made=$$(mktemp -d); trap 'kill $$(jobs -p) 2>/dev/null; rm -rf "$$made"' EXIT; \
	export $(QUIET) PEFTLIB_FIGURES=$$made/figures PEFTLIB_RUNS=$$made/runs; \
	$(PY) -m pytest $(NBVAL) $(filter-out $(STRIPPED),$(NOTEBOOKS)) >$$made/nbval 2>&1 & nbval=$$!; \
	$(PY) -m mypy peftlib >$$made/mypy 2>&1 & mypy=$$!; \
	$(PY) -m pytest $(PARALLEL) -m "not slow" tests; failed=$$?; \
	wait $$nbval || failed=1; wait $$mypy || failed=1; cat $$made/mypy $$made/nbval; exit $$failed

test-slow: env  ## what takes minutes or a browser: kills, damage, workers of clusters, JupyterLab
	@$(QUIET) $(PY) -m pytest $(PARALLEL) -m slow tests

test-latest: env  ## make test's tests with the newest versions of everything: what is newer, and whether they pass
	@$(PYTHON) -m venv --clear $(LATEST)
	@$(VENV)/bin/uv pip install --quiet --python $(LATEST)/bin/python --upgrade -e ".[geo,peft,notebooks,grid,test]"
	@echo "newer than requirements.lock:" && { diff <($(VENV)/bin/uv pip freeze --quiet --python $(PY)) \
	  <($(VENV)/bin/uv pip freeze --quiet --python $(LATEST)/bin/python) | grep '^[<>]' || echo nothing; }
	@$(QUIET) $(LATEST)/bin/python -m pytest $(PARALLEL) -m "not slow" tests

$(TERRATORCH)/.ready: requirements-terratorch.txt pyproject.toml
	@echo "setting up $(TERRATORCH) from requirements-terratorch.txt (about 6 GB) ..."
	@$(PYTHON) -m venv --clear $(TERRATORCH)
	@$(TERRATORCH)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(TERRATORCH)/bin/uv pip install --quiet --python $(TERRATORCH)/bin/python -r requirements-terratorch.txt
	@$(TERRATORCH)/bin/uv pip install --quiet --python $(TERRATORCH)/bin/python --no-deps -e .
	@touch $@

test-terratorch: $(TERRATORCH)/.ready  ## the tests in TerraTorch, in an environment of its own
	@$(QUIET) $(TERRATORCH)/bin/python -m pytest tests/with_terratorch

bench: env  ## time each method beside HF peft's LoRA
	@$(PY) -m peftlib bench

lab: env  ## open JupyterLab on the notebooks
	@$(VENV)/bin/jupyter lab --notebook-dir=. notebooks

site: env  ## README, docs and notebooks as pages that need no network: runs/site/README.html
	@$(PY) -m sphinx -b html -c docs -q . runs/site && echo "open runs/site/README.html"

size: env  ## lines, files and floors, against their budgets
	@$(PY) tests/size.py

lock: env  ## pin again after a change of pyproject.toml
	@$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --all-extras \
	  --custom-compile-command "make lock" pyproject.toml -o requirements.lock
	@$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --extra geo --extra peft \
	  --custom-compile-command "make lock" pyproject.toml requirements-terratorch.in -o requirements-terratorch.txt

clean:  ## remove .venv, .venv-terratorch, .venv-latest and runs/ (figures and weights stay)
	@rm -rf $(VENV) $(TERRATORCH) $(LATEST) runs
