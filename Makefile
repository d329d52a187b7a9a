# Everything a person, a developer or CI runs. `make` alone lists the targets; each one installs
# what it needs into .venv first, and that takes no time when nothing has changed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell for python in python3.11 python3; do \
	if $$python -c "" 2>/dev/null; then echo $$python; break; fi; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE_SOURCES := CMakeLists.txt $(shell find csrc -name "*.[ch]pp" -o -name "*.in" -o -name "*.ptx")
PROTO := src/sllm_store/proto/storage.proto
QUICK := not slow and not gpu and not sanitizer and not soak and not clients
PYTEST ?= $(BIN)/python -m pytest

# What each step installed is kept in .venv beside it, so that a fresh .venv starts over.
MADE := .venv/.made-venv
DEPENDENCIES := .venv/.made-dependencies
NATIVE := .venv/.made-native

.PHONY: help install native run run-server test test-slow test-gpu test-clients soak vocabularies
.PHONY: check format docs proto ptx bench report clean

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

install: $(NATIVE) ## Create .venv with the pinned dependencies, and build the native core

native: $(DEPENDENCIES) ## Build the native core again
	@rm -f $(NATIVE)
	@$(MAKE) --no-print-directory $(NATIVE)

run: $(NATIVE) ## Load a real model through the store, and chat: make run QUESTION="…" asks
	@exec $(BIN)/python -m examples.quickstart $${QUESTION:+"$$QUESTION"}

run-server: $(NATIVE) ## Serve Ollama's and OpenAI's APIs with SmolLM2
	@exec $(BIN)/python -m sllm.cli serve smollm2

test: $(NATIVE) ## Run the tests, without the slow ones and those that need a GPU
	$(PYTEST) -m "$(QUICK)" $(TESTS)

test-slow: $(NATIVE) ## Run the slow tests and those under sanitizers
	$(PYTEST) -m "(slow or sanitizer) and not gpu" $(TESTS)

test-gpu: $(NATIVE) ## Run the tests that need a CUDA device
	$(PYTEST) -m gpu $(TESTS)

soak: $(NATIVE) ## Load 2,000 times while clients are killed at random
	nice $(PYTEST) -m soak $(TESTS)

test-clients: $(NATIVE) build/clients-venv/.made ## Ask a server with SmolLM2 as clients of others ask, and at random
	$(BIN)/python examples/fetch_smollm2.py
	GDSLLM_PYTHON=$(CURDIR)/$(BIN)/python build/clients-venv/bin/python -m pytest -W ignore \
		--confcutdir=tests/clients -m clients tests/clients

vocabularies: $(NATIVE) ## Fetch llama.cpp's vocabularies (75 MB): some tests skip without them
	$(BIN)/python -m tests.fetch_vocabularies

check: $(NATIVE) ## Check formats, lints, types, layers, tidiness and generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	git ls-files -z "*.cpp" "*.hpp" "*.cu" "*.cuh" | xargs -0 $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports
	$(PYTEST) -q tests/tidy tests/sllm_store/cli/test_reference.py tests/sllm/cli/test_reference.py

format: $(DEPENDENCIES) ## Format everything
	$(BIN)/ruff check --fix-only --select I .
	$(BIN)/ruff format .
	git ls-files -z "*.cpp" "*.hpp" "*.cu" "*.cuh" | xargs -0 $(BIN)/clang-format -i

docs: $(NATIVE) ## Build the documentation into site/
	$(BIN)/mkdocs build --strict

bench: $(NATIVE) ## Run every benchmark on small checkpoints; elsewhere: docs/benchmarks.md
	$(BIN)/python -m benchmarks --work build/bench --small

report: $(NATIVE) ## Make the tables and pictures of benchmarks/results/ again
	$(BIN)/python -m benchmarks.report

# The oldest grpcio-tools whose output protobuf 5, 6 and 7 all accept, in a venv of its own.
proto: build/proto-venv/bin/python ## Generate the protocol's Python again
	$< -m grpc_tools.protoc -Isrc --python_out=src --pyi_out=src --grpc_python_out=src $(PROTO)

# The NVRTC of CUDA 12.0: a driver understands the PTX of its own time and before.
ptx: build/ptx-venv/bin/python ## Compile the GPU's decoder to PTX again
	$< csrc/codec/compile_ptx.py

clean: ## Remove what was built; .venv and fetched models stay
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f $(NATIVE)

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or newer is needed: apt install python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
		{ echo "make: venv is missing: apt install python3-venv" >&2; exit 1; }
	@command -v c++ >/dev/null || \
		{ echo "make: a C++ compiler is missing: apt install g++" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

# torch comes first and by its exact version, so that pip takes a build found beside the index (a
# CPU one, say) before the index's own; afterwards nothing asks for another.
$(DEPENDENCIES): constraints.txt pyproject.toml | $(MADE)
	$(PIP) install -q -c constraints.txt pip setuptools
	$(PIP) install -q -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PIP) install -q -c constraints.txt --group dev --group build
	@touch $@

$(NATIVE): $(DEPENDENCIES) $(NATIVE_SOURCES)
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[transformers,peft,reflection,gdsllm]'
	@touch $@

build/clients-venv/.made: tests/clients/constraints.txt
	$(PYTHON) -m venv --clear build/clients-venv
	build/clients-venv/bin/python -m pip install -q --disable-pip-version-check -r $<
	@touch $@

build/ptx-venv/bin/python:
	$(PYTHON) -m venv build/ptx-venv
	$@ -m pip install -q nvidia-cuda-nvrtc-cu12==12.0.140

build/proto-venv/bin/python:
	$(PYTHON) -m venv build/proto-venv
	$@ -m pip install -q grpcio-tools==1.66.2 "setuptools<81"
