# Two commands are enough on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
READY  := $(VENV)/.installed
ARGS   ?=

.PHONY: train test quick lint format check bench docs site clean help
.DEFAULT_GOAL := train

train: $(READY)  ## train multi-head attention on scanned digits (other options: ARGS="--model selfhead ...")
	$(RUN) main.py $(ARGS)

test: lint  ## run the linters, the type checker and all tests
	$(RUN) -m pytest -n 2 --dist loadgroup -m "not exhaustive"

quick: lint  ## run the linters, the type checker and the fast tests, with fewer random examples
	ATTNLAB_EXAMPLES=20 $(RUN) -m pytest -n 2 --dist loadgroup -m "not slow"

lint: $(READY)  ## run ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(READY)  ## format the code
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

check: $(READY)  ## run the conformance suite on every mechanism
	$(RUN) -m attnlab check

bench: $(VENV)/.bench  ## compare speed and memory with other libraries; writes docs/performance.md
	$(RUN) -m benchmarks $(ARGS)

docs: $(READY)  ## update the generated pages and the figures of the lessons
	$(RUN) -m attnlab docs --figures

site: $(READY)  ## build the documentation as a web site in build/site
	$(RUN) -m attnlab.docs.site

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

# Installs once, and again when the pins or the project file change.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 train"; exit 2; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

# The other libraries; without them their rows are marked as not installed.
$(VENV)/.bench: $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
