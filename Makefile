# `make` alone lists what can be made. Everything is installed into .venv, nothing elsewhere.
PYTHON ?= python3
BIN := .venv/bin
# One process a core; one that has nothing left to do takes tests of another.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
.DEFAULT_GOAL := help
# One target after the other, so that what is about to happen is printed before it does.
.NOTPARALLEL:
.PHONY: help book test quick lab check study clean about-book about-test

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /:/' | awk -F: '{printf "make %-6s %s\n", $$1, $$2}'

book: about-book .venv/.reader ## build the book into _build/html
	@$(BIN)/python book/_ext/build.py

test: about-test .venv/.developer ## run everything that proves the project right, in a quarter of an hour
	@$(BIN)/python book/_ext/build.py; built=$$?; $(PYTEST) --built && exit $$built

quick: .venv/.developer ## run the package's tests but the slow ones, in two minutes
	@$(PYTEST) -m "not book and not slow"

lab: .venv/.reader ## open the chapters in JupyterLab
	@$(BIN)/jupyter lab book

check: .venv/.developer ## lint the code, the notebooks and the prose; check the types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m sources tests/test_book_form.py

study: .venv/.reader ## train the models of results/ again (hours; stops and resumes)
	@$(BIN)/python -m priormatch.experiments.study

clean: ## delete everything that was made, but not .venv
	rm -rf _build .mypy_cache .pytest_cache .ruff_cache .hypothesis

about-book:
	@echo "make book: install into .venv, execute every chapter once, write the site to _build/html."
	@$(timing)

about-test:
	@echo "make test: install into .venv, execute every chapter once, build the site, run all tests."
	@$(timing)
	@echo "The tests themselves take some ten minutes more on two cores."

# torch for Linux brings CUDA: several GB that nothing here needs, hence the hint.
define timing
if [ -e .venv/.reader ]; then \
  echo "Takes a minute or two, and the time of the chapters if they changed."; \
else \
  echo "The first time takes 10 to 20 minutes on two cores, most of it downloads; later times a minute or two."; \
  echo "On Linux without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves 4 GB."; \
fi
endef

.venv/.reader: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	@echo "Installing the requirements into .venv ..."
	@$(PYTHON) -m venv .venv
	@# pyproject.toml reads requirements.txt, so this installs every line of it.
	@$(BIN)/python -m pip --disable-pip-version-check install -e .
	@touch $@

.venv/.developer: .venv/.reader requirements-dev.txt
	@echo "Installing tests and linters into .venv ..."
	@$(BIN)/python -m pip --disable-pip-version-check install -r requirements-dev.txt
	@touch $@
