# Sets up .venv by itself; needs Python 3.10 or newer, git and make. Names stay relative and programs are called as
# modules, so that everything works from a folder with a space in its name.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: help demo test fuzz kills lint

help:
	@echo "make demo   train, prune and fine-tune a small network on drawn street scenes (a few minutes)"
	@echo "make test   run the tests"
	@echo "make fuzz   cut many random networks, EXAMPLES=10000 of them, drawn with SEED=0 (ten minutes)"
	@echo "make kills  kill a run with SIGKILL at KILLS=50 random moments, drawn with SEED=0 (some minutes)"
	@echo "make lint   run the linters and the type checker"

demo: .venv/installed
	$(RUN) -m secateur demo

test: .venv/installed
	$(RUN) -m pytest -n 2 --dist loadfile

EXAMPLES ?= 10000
SEED ?= 0
fuzz: .venv/installed
	SECATEUR_EXAMPLES=$(EXAMPLES) $(RUN) -m pytest -q tests/test_engine_random.py --hypothesis-seed=$(SEED)

KILLS ?= 50
kills: .venv/installed
	SECATEUR_KILLS=$(KILLS) SECATEUR_SEED=$(SEED) $(RUN) -m pytest -q -s tests/test_resume.py -k random

lint: .venv/installed
	$(RUN) -m ruff check src tests examples benchmarks
	$(RUN) -m mypy
	$(RUN) -c "from importlinter.cli import lint_imports_command as check; check()"

# PyTorch first and by itself: it is the one large download, and constraints.txt fixes its version.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.version_info >= (3, 10) or sys.exit('secateur needs Python 3.10 or newer: make PYTHON=python3.11 ...')"
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch .venv/installed
