# The commands of this house. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
CLUSTER ?= local
export CLUSTER
PYSRC := operator cluster models benchmarks demo tests

help:  ## Show the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.made: requirements/dev.txt
	@echo "==> Python environment ($(VENV), about 20 s, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tuneyard needs Python 3.11 or newer: set PYTHON=/path/to/python3.11")'
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@echo "import sys, pathlib; sys.path[:0] = [str(pathlib.Path(sys.prefix).parent / 'operator')]" > $$($(RUN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/tuneyard.pth
	@printf '#!/bin/sh\nexec "$$(dirname "$$0")/python" -m tuneyard "$$@"\n' > $(RUN)/tuneyard && chmod +x $(RUN)/tuneyard && cp $(RUN)/tuneyard $(RUN)/kubectl-tuneyard
	@touch $@

venv: $(VENV)/.made  ## Make the Python environment

format: venv  ## Format the code
	@$(RUN)/ruff format $(PYSRC) && $(RUN)/ruff check --fix $(PYSRC)

.PHONY: help venv format
