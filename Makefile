# `make demo` and `make test` do all their own set-up on a machine with python3, venv and make.
PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/.runtime
DEV := .venv/.dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup demo upgrade-demo up test test-full test-gpu test-chaos chaos lint bench figures proto docs clean

setup: $(DEV)  ## everything, tools and transformers included

$(RUNTIME): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation -e .
	touch $@

$(DEV): $(RUNTIME)
	$(PIP) --no-build-isolation -e '.[dev]'
	touch $@

demo: $(RUNTIME)  ## start the service, stream a story, show the tables
	$(BIN)/python -m tools.demo

upgrade-demo: $(RUNTIME)  ## replace the only running worker under load: no stream fails, nothing is computed again
	$(BIN)/python -m tools.upgrade_demo

up: $(RUNTIME)  ## the whole service in the foreground, until Ctrl-C; make up ARGS="--model DIR --port 50052"
	$(BIN)/python -m tools.up $(ARGS)

test: $(DEV)  ## the suite to run before every commit
	$(BIN)/python -m pytest -q

test-full: $(DEV)
	$(BIN)/python -m pytest -q -m "not gpu and (full or not chaos)"

test-gpu: $(DEV)
	$(BIN)/python -m pytest -q -m gpu

test-chaos: $(DEV)  ## kills of workers, daemons and gateways under load; minutes
	$(BIN)/python -m pytest -q -m "chaos and not full"

chaos: $(DEV)  ## the long run: about two hours
	mkdir -p build
	$(BIN)/python -m tests.chaos.run --worker 1000 --out build/chaos-workers.json
	$(BIN)/python -m tests.chaos.run --daemon 300 --double 30 --gateway 30 --upgrade 30 --out build/chaos-daemons.json
	$(BIN)/python -m tests.chaos.run --no-kill --zombie 50 --out build/chaos-zombies.json

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/proto.py --check
	$(BIN)/python -m tools.settings_table --check

bench: $(DEV)
	$(BIN)/python -m benchmarks.serving

figures: $(DEV)  ## the pictures of docs/techniques.md
	$(PIP) --no-build-isolation -e '.[figures]'
	$(BIN)/python -m benchmarks.figures

proto: $(DEV)
	$(BIN)/python tools/proto.py

docs: $(DEV)  ## pages that are made from the code
	$(BIN)/python -m tools.settings_table

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
