# Everything runs in .venv, which the first target that needs it makes. `make help` lists targets.

PYTHON ?= python3
PORT   ?= 3000
ARGS   ?=

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check

# torch comes first and alone: it is by far the largest download, and so an index of your own
# (CPU-only or another CUDA) needs to be named for this one step only.
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

# The runtimes of compiled models: with a GPU's driver those for CUDA. The two exclude each other.
DEVICE ?= $(if $(shell command -v nvidia-smi),gpu,cpu)

# BentoML reports usage over the network unless told not to.
export BENTOML_DO_NOT_TRACK ?= True

.DEFAULT_GOAL := help
.PHONY: help serve test lint format export build bench container-check clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(VENV)/.runtime ## export the embedded model, compiled, if need be; serve it on PORT (3000)
	@if [ -z "$$SDXL_MODEL" ]; then $(BIN)/python -m export embedded --target auto --brief; fi
	@echo "==> Starting the server on port $(PORT); Ctrl-C stops it"
	@exec $(BIN)/bentoml serve . --port $(PORT) $(ARGS)

# A process for each core; a file's tests stay together, in the order of their folders.
WORKERS := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: $(VENV)/.dev ## run the tests; ARGS go to pytest
	@$(BIN)/python -m pytest $(WORKERS) $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.dev ## rewrite the code the way `make lint` wants it
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

export: $(VENV)/.runtime ## write the embedded model, or ARGS="<folder or hub id> …", to the store
	@$(BIN)/python -m export $(or $(ARGS),embedded)

build: $(VENV)/.dev ## pack service and model (SDXL_MODEL) into a bento of this version
	@$(BIN)/bentoml build --version "$$($(BIN)/python -c 'import sdxl_bento; \
	  print(sdxl_bento.__version__)')" $(ARGS)

bench: $(VENV)/.dev ## run the benchmarks; ARGS go to them
	@$(BIN)/python -m benchmarks $(ARGS)

container-check: $(VENV)/.dev ## build an image for real, run it, check it; as root. ARGS=--help
	@PYTHON=$(BIN)/python deploy/container/check.sh $(ARGS)

clean: ## remove the environment and all caches; the model store stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist

# Stamps: an installation is repeated only when what it was made from has changed.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(None if (3, 11) <= v < (3, 14) else f"Python 3.11, 3.12 or 3.13 is needed, \
	$(PYTHON) is {v[0]}.{v[1]}. Name another one: make PYTHON=python3.12 …")'
	@echo "==> 1/3 Making the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "==> 2/3 Installing $(TORCH) (the largest download; minutes on a slow line)"
	@$(PIP) install $(TORCH)
	@touch $@

$(VENV)/.runtime: $(VENV)/.torch pyproject.toml
	@echo "==> 3/3 Installing the other packages"
	@$(PIP) install -c constraints.txt -e '.[$(DEVICE),export,ui]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime tests/contracts/requirements-kserve.txt
	@echo "==> Installing the tools for tests and checks"
	@$(PIP) install -c constraints.txt -e '.[$(DEVICE),export,ui,dev]'
	@$(PIP) install --quiet --no-deps -r tests/contracts/requirements-kserve.txt
	@touch $@
