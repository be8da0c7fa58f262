SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
# `make test PYTHON=python3.13` beside a .venv of another Python: in .venv-3.13, and .venv stays.
ifneq ($(origin PYTHON),file)
  minor = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
  ASKED := $(call minor,$(PYTHON))
  ifeq ($(ASKED),)
    $(error PYTHON=$(PYTHON) does not run here: name an interpreter of Python 3.11 or newer)
  endif
  ifneq ($(wildcard $(VENV)/bin/python),)
    ifneq ($(call minor,$(VENV)/bin/python),$(ASKED))
      VENV := .venv-$(ASKED)
    endif
  endif
endif
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SPEED_VENV := .venv-speed
SPEED_INSTALLED := $(SPEED_VENV)/.installed
# uv looks for local wheels where pip does, so that a machine that keeps a CPU build of torch uses it.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Container images often set it; then every process would compile Prefect and torch anew, 2.7 s.
unexport PYTHONDONTWRITEBYTECODE
# On a terminal uv shows its progress; in a log it would be a line for each of 200 packages.
QUIET := $(shell test -t 2 || echo -q)
UV = $$(command -v uv || echo $(BIN)/uv)

.PHONY: help install vast up run benchmark down test types tests test-ui speed speed-gpu compare lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## create .venv with the locked dependencies

$(INSTALLED): pyproject.toml constraints.txt
	@test -e $(VENV) || { free=$$(df -Pk . | awk 'NR == 2 { printf "%d", $$4 / 1e6 }'); \
	  echo "an installation takes 2 GB of disk, 5 GB where torch comes with CUDA; here $$free GB are free"; \
	  (( free >= 2 )) || { echo "error: too little room: make some, or clone onto another disk" >&2; exit 1; }; }
	@command -v uv >/dev/null || test -x $(BIN)/uv || \
	  { $(PYTHON) -m venv $(VENV) && $(BIN)/pip install -q uv; }
	@test -x $(BIN)/python || $(UV) venv -q --python $(PYTHON) $(VENV)
	@echo "installing the locked dependencies into $(VENV)"
	@$(UV) pip install $(QUIET) --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@echo "installed: $$(du -sh $(VENV) | cut -f1) in $(VENV)"
	@touch $@

vast: install  ## add the tool that rents GPUs from Vast.ai (the extra `vast`)
	@$(UV) pip install -q --python $(BIN)/python -c constraints.txt -e '.[vast]'

up: install  ## start the Prefect server, the object store and a worker; print the UI's address
	@$(BIN)/ups up

run: install  ## train once through the deployment; ARGS="-p epochs=10" goes to `prefect deployment run`
	@$(BIN)/ups run $(ARGS)

benchmark: install  ## time the startup in scenarios and compare; ARGS="-s all --repeats 3"
	@$(BIN)/ups benchmark $(ARGS)

down:  ## stop what `up` and `run` started; say what stays on disk
	@if test -x $(BIN)/ups; then $(BIN)/ups down; else echo "no $(VENV) here, so nothing was started from it"; fi

test: install  ## lint, types, imports, tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(MAKE) --no-print-directory -j 2 types tests

types:
	@$(BIN)/mypy

# The tests wait for servers more than they compute: two cores have room for four workers, and for mypy.
tests:
	@env -u MAKEFLAGS -u MAKELEVEL $(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

test-ui: install  ## the UI in a headless chromium, on a stack of its own; screenshots in .ui/
	@command -v "$${UPS_CHROMIUM:-chromium}" >/dev/null || { \
	  echo "no chromium: run \`apt-get install chromium\`, or set UPS_CHROMIUM to a browser's path"; exit 1; }
	@$(BIN)/pytest -m ui tests/ui

speed: install $(SPEED_INSTALLED)  ## measure each phase beside its peers on the CPU; ARGS="--sections load"
	@$(BIN)/python -m speed cpu $(ARGS)

speed-gpu: install  ## measure encoding, loading and training on a GPU; ARGS="--device cpu --size 0.01"
	@$(BIN)/python -m speed gpu $(ARGS)

compare: install  ## our operator, FNO and U-Net: error for equal seconds of training; ARGS="--device cuda"
	@$(BIN)/python -m speed operators $(ARGS)

# The peers have an environment of their own, so that they never bend the project's lock.
$(SPEED_INSTALLED): speed/requirements.txt | $(INSTALLED)
	@echo "installing the peers into $(SPEED_VENV)"
	@test -x $(SPEED_VENV)/bin/python || $(UV) venv -q --python $(BIN)/python $(SPEED_VENV)
	@$(UV) pip install -q --python $(SPEED_VENV)/bin/python -r speed/requirements.txt
	@touch $@

lock:  ## resolve the dependencies anew, for every platform, CUDA builds included
	@env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(UV) pip compile --universal --python-version 3.11 --all-extras \
	  --no-annotate --no-header -q --upgrade -o constraints.txt pyproject.toml
	@env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(UV) pip compile --universal --python-version 3.11 \
	  --no-annotate --no-header -q --upgrade -o speed/requirements.txt speed/requirements.in

clean: down  ## remove what this project made, never what you made; ARGS=--all: runs, too
	@if test -x $(BIN)/ups; then $(BIN)/ups clean $(ARGS); else echo "nothing is removed without it: \`make install\` first"; fi
