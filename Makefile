# Needs Python 3.11 or later with its headers, a C compiler and make; everything else comes into .venv.
#
#   make run     start Weir with a ClickHouse and a Postgres of its own, all data under var/
#   make test    everything the test suite needs, then the suite
#   make interop the vendors' own packages against a running gateway, with ten times the records of make test
#   make chaos   the fault programme in full, for WEIR_CHAOS_SECONDS (3600); counted in tests/chaos/results/
#   make bench   the benchmark
#   make lint    the checks of make test that need no running parts
#   make build   .venv and the compiled extension, without starting anything
#   make clean   removes what was built, and keeps var/ and .venv

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
CC ?= cc
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location
# Every process compiles what it imports where PYTHONDONTWRITEBYTECODE is set: a start takes half as long again.
COMPILE := $(BIN)/python -m compileall -q
SOURCES := pyproject.toml setup.py $(wildcard _native/*.pyx _native/*.pxd _native/*.pxi _native/*.h)

.PHONY: run test interop chaos bench lint build clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	@$(COMPILE) gateway
	@exec $(BIN)/weir serve

# pytest comes last, so that its closing line is the last one.
test: lint
	@$(COMPILE) gateway tests bench
	@$(BIN)/python -m pytest

interop: $(VENV)/.installed-for-tests
	@WEIR_INTEROP_RECORDS=20000 $(BIN)/python -m pytest tests/interop

chaos: $(VENV)/.installed-for-tests
	@WEIR_CHAOS_FULL=1 $(BIN)/python -m pytest tests/chaos
	@$(BIN)/python -m tests.chaos

lint: $(VENV)/.installed-for-tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/python -m mypy.stubtest gateway._native

bench: $(VENV)/.installed-for-tests
	@$(BIN)/python bench/decode.py
	@$(BIN)/python bench/spool.py

build: $(VENV)/.installed

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f gateway/_native*.so _native/native.c $(VENV)/.installed $(VENV)/.installed-for-tests
	find gateway tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# The first run says what is missing in words rather than by a compiler's or pip's traceback.
$(BIN)/python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Weir needs Python 3.11 or later$(if $(PYTHON), and $(PYTHON) is not)." \
			"Install one, or name one: make run PYTHON=/path/to/python3.12" >&2; exit 1; }
	@command -v $(firstword $(CC)) >/dev/null 2>&1 || { \
		echo "Weir needs a C compiler and found no $(firstword $(CC)). On Debian and Ubuntu: apt install gcc" >&2; exit 1; }
	@"$(PYTHON)" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || { \
		echo "Weir needs the C headers of $(PYTHON) (Python.h). On Debian and Ubuntu: apt install python3-dev" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { \
		echo "$(PYTHON) -m venv failed. On Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }

$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	@echo "Installing Weir into $(VENV) and compiling its extension (a minute or two, once)."
	@$(PIP) --editable '.[embedded]'
	@touch $@

$(VENV)/.installed-for-tests: $(SOURCES) | $(BIN)/python
	@echo "Installing Weir and what its tests need into $(VENV) and compiling its extension (a minute or two, once)."
	@$(PIP) --editable '.[embedded,test]'
	@touch $(VENV)/.installed $@
