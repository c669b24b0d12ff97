# `make help` lists what there is. Everything happens in $(VENV), made from requirements.lock on first use.

SHELL   := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= quick
FRESH   ?=
UPGRADE ?=
PYTEST  ?=
BENCH   ?=
# Where the executed notebooks go, which make html renders.
OUT     ?= book/executed
# What the figures of this machine are filed under.
MACHINE ?= cpu
# Tests, or notebooks, at a time: small matrices gain little from threads.
JOBS    ?= $(shell getconf _NPROCESSORS_ONLN)

BIN := $(VENV)/bin
PY  := $(BIN)/python
UV  := $(BIN)/uv
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --no-header $(if $(UPGRADE),--upgrade)

BOOTSTRAPPED := $(VENV)/.bootstrapped
INSTALLED    := $(VENV)/.installed
PROFILE_FILE := notebooks/profiles/$(PROFILE).yml
# What FRESH=1 removes: the results of the profile, not those of others, which lie below or beside.
STALE        := $(if $(filter quick,$(PROFILE)),results/cells results/findings,results/$(PROFILE))
SOURCES      := cola_lib tests $(wildcard benchmarks)

# Grids of the confirmation, in the order in which they are computed.
CONFIRMATION := a2_length a3_reasoning a1_sources

# What `make interop` runs, each in .venv-interop/TOOL.
TOOLS := llmcompressor gptqmodel

.PHONY: help book plan notebooks html check-book pdf notebook evidence confirmation pack-confirmation test coverage interop assets setup lint format bench same-numbers same-findings size lock clean distclean

help:  ## List the targets
	@echo "Usage: make TARGET [PROFILE=quick] [FRESH=1] [VENV=.venv] [PYTHON=python3]"
	@echo "FRESH=1 removes the stored results of the profile first, so that make book computes all of them."
	@echo "PROFILE=standard reads evidence/, and computes what is missing there: hours, until COLA's sets are stored again."
	@echo
	@sed -n 's/^\([a-z][a-z-]*\):.*  ## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

book: plan  ## Set up, fetch the model and data, run the notebooks, render the book to _build/html
	@$(MAKE) --no-print-directory setup
	@$(if $(FRESH),rm -rf $(STALE) book/executed _build)
	@$(MAKE) --no-print-directory assets
	@$(MAKE) --no-print-directory notebooks html

plan:
	@test -f $(PROFILE_FILE) || { echo "error: no profile '$(PROFILE)'; there are: $(basename $(notdir $(wildcard notebooks/profiles/*.yml)))" >&2; exit 2; }
	@echo "make book, profile $(PROFILE):"
	@echo "  1. install $(VENV) from requirements.lock     about 4 minutes and 7 GB, the first time only"
	@echo "  2. fetch the model and the data           about 2 minutes and 1 GB, the first time only"
	@echo "  3. run the notebooks                      $$(sed -n 's/^takes: *//p' $(PROFILE_FILE))"
	@echo "  4. render the book to _build/html         about 1 minute"

notebooks: setup  ## Run the notebooks of PROFILE into book/executed, or OUT
	@$(PY) -m cola_lib.cli notebook --profile $(PROFILE) --out $(OUT) --jobs $(JOBS) $(if $(FRESH),--fresh) $(if $(CI),,--progress)

html: setup  ## Render book/executed to _build/html, warnings as errors
	@$(BIN)/jupyter-book build . --quiet --warningiserror --nitpick --keep-going --toc book/_toc.yml
	@echo "The book: file://$(CURDIR)/_build/html/index.html"

test:  ## Set up, fetch the model and data, run the tests; PYTEST="-k name" for some
	@echo "make test: set up, fetch and run the tests; about 12 minutes on 2 CPU cores, and 5 more the first time"
	@$(MAKE) --no-print-directory setup assets
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses $(JOBS) --maxprocesses 4 --dist loadgroup $(PYTEST)

coverage: setup assets  ## Run the tests and count the lines and branches that they reach; coverage.xml for machines
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses $(JOBS) --maxprocesses 4 --cov --cov-report term:skip-covered --cov-report xml $(PYTEST)

check-book: setup  ## Open every page of the built book in Chromium, and use it; screenshots go to _build/screenshots
	@test -f _build/html/index.html || { echo "error: there is no book in _build/html yet; run make book" >&2; exit 2; }
	$(PY) -m pytest -m browser --numprocesses $(JOBS) --maxprocesses 4 --dist loadgroup tests/test_book_pages.py $(PYTEST)

pdf: setup  ## Print the notebooks' pages and the others as one book, _build/book.pdf; needs Chromium
	@$(BIN)/jupyter-book build . --quiet --builder singlehtml --toc book/_toc.yml
	@cp _build/singlehtml/book/executed/00_choose.html _build/singlehtml/book.html  # its links begin at the root
	@$(PY) -c 'from cola_lib.pages import print_book; print_book("_build/singlehtml/book.html", "_build/book.pdf")'
	@echo "The book in print: $(CURDIR)/_build/book.pdf"

notebook: setup  ## Open a notebook in JupyterLab: make notebook N=03
	@test -n "$(N)" || { echo "error: which? make notebook N=03" >&2; exit 2; }
	@test -e $(firstword $(wildcard notebooks/$(N)*.ipynb) none) \
	  || { echo "error: no notebook notebooks/$(N)*.ipynb; there are: $(basename $(notdir $(wildcard notebooks/*.ipynb)))" >&2; exit 2; }
	$(BIN)/jupyter lab $(firstword $(wildcard notebooks/$(N)*.ipynb))

interop: $(TOOLS:%=.venv-interop/%/.installed)  ## Run llm-compressor and GPTQModel on our sets, each in an environment of its own
	@$(MAKE) --no-print-directory setup assets
	OMP_NUM_THREADS=1 $(PY) -m pytest -m interop tests/test_interop.py $(PYTEST)

assets: setup  ## Fetch the embedded model and data into the cache
	@$(PY) -m cola_lib.cli assets

setup: $(INSTALLED)  ## Make .venv and install the locked dependencies and the package

evidence: setup  ## Pack what PROFILE=standard computed into evidence/, its scorecard and figure into README.md, to be committed
	@$(PY) -m cola_lib.cli pack --store results/standard --out evidence
	@$(PY) -m cola_lib.cli claims --store evidence --into README.md
	@$(PY) book/headline.py

confirmation: setup assets  ## Compute the confirmation's cells that are missing, hours of one core, and pack them into evidence/confirmation
	for grid in $(CONFIRMATION); do OMP_NUM_THREADS=1 $(PY) -m cola_lib.cli sweep notebooks/sweeps/evidence/$$grid.yml; done
	@$(MAKE) --no-print-directory pack-confirmation

pack-confirmation: setup  ## Pack what make confirmation has computed so far, also while it runs
	@$(PY) -m cola_lib.cli pack --store results/evidence --out evidence/confirmation

lint: setup  ## Check style, formatting, types and the direction of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(BIN)/lint-imports

format: setup  ## Mend style and formatting
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: setup assets  ## Time everything against the forward pass and the peers, into benchmarks/results; BENCH="--only walk" for a part
	$(PY) -m benchmarks --out benchmarks/results/$(MACHINE).json $(BENCH)

same-numbers: setup  ## Recompute the analysis of the evidence under several BLAS kernels and thread counts, and compare
	$(PY) -m benchmarks.same_numbers

size: setup  ## Count the lines of library and tests: code, docstrings, comments
	@$(PY) -m benchmarks.size

same-findings: setup assets  ## Judge the claims of all chapters under several BLAS kernels and thread counts, and compare what is printed
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.same_findings

lock: $(BOOTSTRAPPED)  ## Write the lock files anew from pyproject.toml; UPGRADE=1 takes newer versions
	$(COMPILE) --extra book --extra dev --extra export --extra embeddings --extra ray pyproject.toml -o requirements.lock
	$(COMPILE) --constraint requirements.lock requirements-bootstrap.in -o requirements-bootstrap.lock
	@# The tools' pins contradict ours and each other's, so each has a lock of its own.
	for tool in $(TOOLS); do $(COMPILE) requirements-interop-$$tool.in -o requirements-interop-$$tool.lock; done

clean:  ## Remove what the book and the tests wrote; results and .venv stay
	rm -rf _build book/executed .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache .coverage coverage.xml
	find cola_lib tests notebooks benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## Remove the results and all environments too
	rm -rf results $(VENV) .venv-interop cola_lib.egg-info

$(BOOTSTRAPPED): requirements-bootstrap.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is missing or older than 3.11; give another with PYTHON=..." >&2; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --require-hashes --only-binary :all: --requirement requirements-bootstrap.lock
	@touch $@

# Three small packages of the lock come as source only; without isolation they build with the setuptools
# of the bootstrap lock, so that nothing unpinned is ever installed.
$(INSTALLED): $(BOOTSTRAPPED) requirements.lock pyproject.toml
	@echo "Installing $(VENV) from requirements.lock"
	@$(UV) pip install --quiet --compile-bytecode --python $(PY) --no-build-isolation --require-hashes --requirement requirements.lock
	@$(UV) pip install --quiet --python $(PY) --no-build-isolation --no-deps --editable .
	@touch $@

.venv-interop/%/.installed: requirements-interop-%.lock | $(BOOTSTRAPPED)
	@echo "Installing .venv-interop/$* from $<: about 5 minutes and 5 GB, the first time only"
	@$(UV) venv --quiet --clear --python $(PY) .venv-interop/$*
	@$(UV) pip install --quiet --python .venv-interop/$*/bin/python --require-hashes --requirement $<
	@touch $@
