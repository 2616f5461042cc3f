# The only task runner. Every target does its own set-up; `make` alone says what there is.
.PHONY: help setup demo bench stress traffic test test-buses fuzz lint type unit uapi guest docs clean
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-10s %s\n", $$1, $$2 }'

setup: ## system packages (apt) and .venv; quick when nothing changed
	@.ci/setup

demo: setup ## see it work on emulated devices, in a guest
	@.venv/bin/vfio-user demo

test: setup ## everything, with a summary by lane
	@$(PYTHON) tests/lanes.py

unit: setup ## tests without a kernel; the C of the memory lock under ThreadSanitizer
	@$(PYTHON) tests/lanes.py unit native

uapi: setup ## declarations against the newest kernel headers
	@$(PYTHON) tests/lanes.py uapi

guest: setup ## tests on /dev/vfio in QEMU guests, of several kernels and IOMMUs
	@$(PYTHON) tests/lanes.py runner 'guest-*' 'network-*' 'no*' corners amd virtio

test-buses: setup ## tests of the other buses, in guests of arm64 and s390x; builds their kernels the first time
	@$(PYTHON) tests/lanes.py 'arm64*' s390x

fuzz: setup ## hostile bytes for all that is read of the kernel, guided by coverage, for 2 minutes (needs atheris)
	@$(PYTHON) -c 'import atheris' 2>/dev/null || $(PYTHON) -m pip install -q --disable-pip-version-check --group fuzz
	@$(PYTHON) -m tests.fuzz --seconds 120

stress: setup ## resets, unplugging and killing under load: for seconds, or MINUTES=10
	@$(PYTHON) tests/lanes.py $(if $(MINUTES),--minutes=$(MINUTES)) 'stress-*'

traffic: setup ## data through all drivers at once, every byte checked: 10 GiB, or GIB=1
	@$(PYTHON) tests/lanes.py --jobs 1 --gib=$(or $(GIB),10) traffic

bench: setup ## ratios against floors and peers; writes benchmarks/results.json and .svg
	@.ci/setup bench
	@$(PYTHON) -m benchmarks

docs: setup ## the documentation, as pages in .out/docs; warnings are errors
	@$(PYTHON) -m sphinx -q -W --keep-going -b html docs .out/docs && echo .out/docs/index.html

lint: setup ## ruff
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

type: setup ## mypy --strict
	@.venv/bin/mypy

clean: ## everything that was made here; the guest's kernels stay in ~/.cache/vfio-user
	rm -rf .venv .out build dist _cdefs/build *.egg-info .mypy_cache .pytest_cache .ruff_cache vfio_user/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
