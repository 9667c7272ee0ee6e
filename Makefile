# Two commands are enough on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
READY  := $(VENV)/.installed
ARGS   ?=

.PHONY: train test lint format check bench docs site clean
.DEFAULT_GOAL := train

train: $(READY)  ## train the default model on real data (ARGS="--model selfhead ..." for another)
	$(RUN) main.py $(ARGS)

test: lint  ## lint, types and the whole test suite
	$(RUN) -m pytest -n 2 --dist loadgroup

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

check: $(READY)  ## the conformance suite over every mechanism
	$(RUN) -m attnlab check

bench: $(VENV)/.bench  ## speed and memory against peers, and docs/performance.md
	$(RUN) -m benchmarks $(ARGS)

docs: $(READY)  ## redraw what is generated: the index of mechanisms and the lessons' figures
	$(RUN) -m attnlab docs --figures

site: $(READY)  ## build the documentation as a web site in build/site
	$(RUN) -m attnlab.docs.site

# Installs once; again only when the pins or the project file change.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 train"; exit 2; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

# The peers; without them their rows say that they are not installed.
$(VENV)/.bench: $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
