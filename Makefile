# The two commands of the README are `make run` and `make test`. `make real` is `make run` with a real pretrained model;
# DATA is where texts and questions lie, see lab/studies/real_model.py. The others are parts of them.
PYTHON ?= python3
ENVIRONMENT := .venv
BIN := $(ENVIRONMENT)/bin
QUICKSTART := recipes/quickstart.yaml
RUN := runs/quickstart
DATA ?= ../shared/data

TABLES := $(BIN)/cog -P -I . -p "from lab.docs import markdown, numerics, pretraining, reproduction, stability, tables"
PAGES := README.md docs/*.md docs/*/*.md docs/memory.svg

.PHONY: run real test test-thorough coverage test-all lint docs tables clean

run: $(ENVIRONMENT)/installed
	$(BIN)/revformers pretrain $(QUICKSTART) --overwrite
	$(BIN)/revformers verify $(RUN)/model
	$(BIN)/python -m lab compare $(QUICKSTART) --out $(RUN)
	$(BIN)/python -m lab report $(RUN) --out report.html

real: $(ENVIRONMENT)/installed
	$(BIN)/python -m lab.studies.real_model --data $(DATA)

# One thread a worker: two workers that each start a thread per core fight over the cores.
test: $(ENVIRONMENT)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# The tests that take seconds each; .ci/run runs them as well.
test-thorough: $(ENVIRONMENT)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "thorough and not slow and not gpu"

# The engine, the policies and the dynamics, by the tests in their own folders.
coverage: $(ENVIRONMENT)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/engine tests/activations tests/dynamics \
		--cov=revformers.engine --cov=revformers.activations --cov=revformers.dynamics \
		--cov-report=term-missing:skip-covered --cov-fail-under=99

test-all: $(ENVIRONMENT)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not gpu"

lint: $(ENVIRONMENT)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(TABLES) --check $(PAGES)
	$(MAKE) docs

# The site, in build/site; it fails on a broken link.
docs: $(ENVIRONMENT)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Writes the tables of README and docs anew from lab/results.
tables: $(ENVIRONMENT)/installed
	$(TABLES) -r $(PAGES)

$(ENVIRONMENT)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ENVIRONMENT)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,lint,docs]"
	touch $@

clean:
	rm -rf $(ENVIRONMENT) runs report.html real.html
