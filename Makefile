# make demo: from nothing to a trained, evaluated, exported model.  make test: the tests.  make chaos: kills and damage.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed
# Compilers for TPUs and GPUs that are not there, for tests and plans.
COMPILERS := .venv/compilers/installed

.PHONY: demo test test-slow test-versions chaos lint format house docs gpu-check clean

demo: $(INSTALLED)
	$(BIN)/python experiments/demo.py --workdir=runs/demo

# Most of its time is compilation, which takes half as long without LLVM's optimisations; test-slow has them.
test: $(INSTALLED) $(COMPILERS)
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(INSTALLED) $(COMPILERS)
	$(BIN)/pytest -m slow

# On every Python and JAX that a user gets. Pythons that are neither on the PATH nor pyenv's: PYTHON=/path/to/python3.12
test-versions: $(INSTALLED)
	PYTHON="$(PYTHON)" $(BIN)/python experiments/test_versions.py $(ARGS)

chaos: $(INSTALLED)
	$(BIN)/python experiments/chaos.py --workdir=runs/chaos

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What keeps the code readable, in figures.
house: $(INSTALLED)
	$(BIN)/python experiments/house.py

# All pages and the API as a site in build/docs; a link to nothing or a key without a comment is an error.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

.venv/docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

# With JAX's CUDA libraries where there is an NVIDIA driver; torch, for ARGS=--peer, is the machine's own to install.
gpu-check: .venv/gpu-check
	$(BIN)/python experiments/gpu_check.py --workdir=runs/gpu-check $(ARGS)

.venv/gpu-check: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.$(if $(shell command -v nvidia-smi),[cuda])'
	touch $@

clean:
	rm -rf .venv build runs *.egg-info

$(INSTALLED): setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test,torch,peft,notebooks]'
	touch $@

$(COMPILERS): $(INSTALLED) experiments/install_compilers.py
	$(BIN)/python experiments/install_compilers.py
