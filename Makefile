# Everyday commands. Each sets up .venv first, once: again only when the needed packages change.
#   make demo                     make PYTHON=python3.12 test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The installation leaves compiling to the first import: were that not kept, every process would do it anew, for half a minute.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo docs notebook check test pytest test-quick test-slow test-browser test-comfyui test-kohya load coverage lint format typecheck floors bench clean
# Many small tests: one thread for each of the processes is quickest. A file's tests stay together, so that what they
# share is made once; files in the order that tests/conftest.py gives them.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# One more than there are processors, since some tests wait for processes that they start.
WORKERS := $(shell echo $$(($$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) + 1)))

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(STAMP) ## distil the packaged teacher on this machine and show the result
	@$(BIN)/rmd demo

check: lint floors ## style, floors, types, and the tests that need no training: a minute and a half
	@$(MAKE) --no-print-directory -j2 typecheck test-quick

test: lint floors ## everything that must pass before a commit
	@$(MAKE) --no-print-directory -j2 typecheck pytest

pytest: $(STAMP) ## the tests alone
	@$(PYTEST) --durations=12

test-quick: $(STAMP) ## the tests that need no training, alone
	@$(PYTEST) -m 'not slow and not heavy'

test-browser: $(STAMP) ## the pages in a real browser; needs Chromium on the path
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile -c constraints.txt 'playwright>=1.49' -e '.[ui]'
	@$(BIN)/python -m pytest -q tests/browser -o testpaths=tests/browser

test-comfyui: $(STAMP) ## the nodes in ComfyUI itself; needs COMFYUI=FOLDER, and COMFYUI_PYTHON=... if that has its own
	@$(BIN)/python -m pip install -qq --disable-pip-version-check 'websockets>=13'
	@COMFYUI="$(COMFYUI)" COMFYUI_PYTHON="$(COMFYUI_PYTHON)" OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -q tests/comfyui -o testpaths=tests/comfyui

test-kohya: $(STAMP) ## the kohya export in sd-scripts itself; needs SD_SCRIPTS=FOLDER, and SD_SCRIPTS_PYTHON=... likewise
	@SD_SCRIPTS="$(SD_SCRIPTS)" SD_SCRIPTS_PYTHON="$(SD_SCRIPTS_PYTHON)" OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -q tests/kohya -o testpaths=tests/kohya

test-slow: $(STAMP) ## long trainings, 3,000 damaged inputs, kill storms, and the whole demo
	@$(BIN)/python -m pytest -q -m slow

load: $(STAMP) ## 500 requests from 20 clients to a server, with faults: prints what came of them
	@$(BIN)/python -m pytest -q -s -n 0 -m slow tests/load

docs: $(VENV)/.docs ## build the documentation site into site/; a broken link or an unknown name is an error
	@$(BIN)/python tools/site.py
	@$(BIN)/zensical build --strict --clean

notebook: $(VENV)/.docs ## run examples/quickstart.ipynb and keep its outputs: some minutes
	@$(BIN)/python tools/notebook.py

coverage: $(STAMP) ## lines and branches of src/rmd that the tests execute
	@$(PYTEST) --cov=src/rmd --cov-branch --cov-report=term:skip-covered

lint: $(STAMP) ## style and formatting
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "make: some files are not formatted; run make format" >&2; exit 1; }

format: $(STAMP) ## put style and formatting right
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format .

typecheck: $(STAMP) ## mypy, strict; silent when nothing is wrong
	@$(BIN)/mypy --no-error-summary

floors: $(STAMP) ## which package may import which; silent when nothing is wrong
	@report=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$report" >&2; exit 1; }

bench: $(STAMP) ## time, FLOPs and memory of a cascade
	@$(BIN)/rmd bench sample

$(VENV)/.docs: $(STAMP)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

clean: ## remove caches and build output; keeps .venv and runs
	@rm -rf build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

OLD_ENOUGH = -c 'import sys; sys.exit(sys.version_info < (3, 10))'

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) $(OLD_ENOUGH) 2>/dev/null || { \
	  echo "make: RMD needs Python 3.10 or newer, and '$(PYTHON)' is not; name another one: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(OLD_ENOUGH) || { \
	  echo "make: $(VENV) was made with a Python older than 3.10; remove that folder and run make again" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --default-pip >/dev/null
	@echo "Installing RMD and what it needs into $(VENV) (once; a few minutes) ..."
	@# The pip that came with an older Python takes a quarter longer than the current one.
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --upgrade pip || true
	@# Python compiles a module when it is first imported: all of them beforehand would take nearly half of the installation.
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]' || { \
	  echo "make: the installation did not succeed, for the reason above; put it right and run make again" >&2; exit 1; }
	@touch $@
