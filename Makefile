# mezzotint: `make` lists what there is. Needs Python >= 3.11 and make; everything else goes into .venv.
#
# torch comes first, from a CPU build: without it, pip takes the newest CUDA build (several GB). Where pip finds no CPU
# build of this version, or you have a GPU, install torch into .venv yourself (PyTorch's site has the line), or give
# pip's words: make TORCH="torch==2.13.0 --index-url ..." with the index of CPU builds.
TORCH ?= torch==2.13.0
PYTHON ?= python3
MODEL ?= icons
PROMPT ?= a red heart, noto emoji
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help picture test check test-long test-page parity clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.venv/installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet $(TORCH)
	@$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/developed: pyproject.toml .venv/installed
	@$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

picture: ## write pictures for PROMPT with MODEL (default: the packaged model) into outputs/
	@$(MAKE) --silent .venv/installed
	@$(BIN)/mezzotint generate "$(PROMPT)" --model "$(MODEL)" --output outputs

test: .venv/developed ## what CI runs: style, types, import layers, tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q tests/models tests/diffusion --jaxtyping-packages=mezzotint,beartype.beartype

check: .venv/developed ## for every commit: style, types, import layers, fast tests
	@$(BIN)/ruff format .
	@$(BIN)/ruff check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -x

test-long: .venv/developed ## the long forms: full-size models, many kills
	@OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m slow

test-page: .venv/developed ## the page in a real browser (Chromium; from apt where it is missing)
	@which chromium chromium-browser google-chrome 2>/dev/null | grep -q . || { apt-get update -qq && apt-get install -y -qq chromium; } \
	  || { echo 'no Chromium here: install one (Debian: apt-get install chromium) or put it on PATH'; exit 1; }
	@OMP_NUM_THREADS=1 PAGE_RESULTS=benchmarks/results/page.json $(BIN)/python -m pytest -q -m page

parity: .venv/developed ## every network at full size against diffusers and transformers (24 GB)
	@OMP_NUM_THREADS=2 $(BIN)/python -m tests.parity_full

clean: ## remove .venv and outputs
	@rm -rf .venv outputs
