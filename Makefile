# `make run` serves, `make test` checks everything; each makes what it needs and does nothing twice.

PYTHON ?= python3
UV ?= uv
# pytest processes at a time, and further arguments for it: make test ARGS="-k sse"
JOBS ?= 2
ARGS ?=
# Programs of the operating system that tests need, as PROGRAM:DEBIAN_PACKAGE.
SYSTEM_PARTS :=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# No deps: a lock lists everything, and a pip that resolves again takes the newest release of what is asked for by an
# extra, whatever is locked. `check` says if a lock misses something.
LOCKED := install --quiet --require-hashes --no-deps
# What an installation is made from; installed in place, so that only its metadata can go stale.
METADATA := pyproject.toml llmproxy/__init__.py
# Other gateways, which only their own benchmark needs.
OTHERS := .gateways

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help run test lint types system-parts format bench bench-quick bench-others docs wheel lock clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.run ## Serve on 127.0.0.1:8080 with an embedded database and a demo provider
	$(BIN)/llmproxy serve $(ARGS)

test: lint types system-parts tests/node/node_modules/.package-lock.json ## Run everything CI runs
	$(BIN)/pytest -n $(JOBS) $(ARGS)

lint: $(VENV)/.dev ## Check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev ## Check types
	$(BIN)/mypy

system-parts: ## Install, or name, missing programs of the operating system
	@tools/system_parts $(SYSTEM_PARTS)

format: $(VENV)/.dev ## Format, and fix what can be fixed safely
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.dev ## Measure what the gateway costs
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: $(VENV)/.dev ## Fail when the gateway has become much dearer beside a bare relay
	$(BIN)/python -m benchmarks.gate

bench-others: $(VENV)/.dev $(OTHERS)/litellm/.made $(OTHERS)/portkey/.made ## Install LiteLLM and Portkey's gateway apart, and measure them beside llmproxy
	$(BIN)/python -m benchmarks.others $(ARGS)

docs: $(VENV)/.dev ## Make the generated pages anew
	$(BIN)/python -m llmproxy.hookdocs > docs/hooks.md
	$(BIN)/python -m tests.vendor_matrix

wheel: $(VENV)/.run ## Build the source archive and the wheel into dist/
	$(BIN)/hatchling build

COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header $(ARGS)

lock: ## Pin dependencies anew: ARGS=--upgrade for newer versions, ARGS="--upgrade-package aiohttp" for one
	$(COMPILE) pyproject.toml -o requirements/runtime.txt
	$(COMPILE) --group build -c requirements/runtime.txt -o requirements/build.txt
	$(COMPILE) pyproject.toml --all-extras --group dev -c requirements/runtime.txt -c requirements/build.txt -o requirements/dev.txt

clean: ## Remove what was made, except a gateway's state
	rm -rf $(VENV) $(OTHERS) dist tests/node/node_modules .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmproxy needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made requirements/runtime.txt requirements/build.txt $(METADATA)
	$(PIP) $(LOCKED) -r requirements/runtime.txt -r requirements/build.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@$(PIP) check --quiet
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.txt
	$(PIP) $(LOCKED) -r requirements/dev.txt
	@$(PIP) check --quiet
	@touch $@

tests/node/node_modules/.package-lock.json: $(VENV)/.dev tests/node/package.json tests/node/package-lock.json
	tools/npm --prefix tests/node ci --no-audit --no-fund
	@touch $@

$(OTHERS)/litellm/.made: benchmarks/litellm.txt
	$(PYTHON) -m venv --clear $(OTHERS)/litellm
	$(OTHERS)/litellm/bin/python -m pip --disable-pip-version-check --no-input install --quiet -r $<
	@touch $@

$(OTHERS)/portkey/.made: $(VENV)/.dev benchmarks/portkey.json
	rm -rf $(@D)
	mkdir -p $(@D)
	cp benchmarks/portkey.json $(@D)/package.json
	tools/npm --prefix $(@D) install --ignore-scripts --no-audit --no-fund
	@touch $@
