# make          what CI runs: format, lint, types, import contracts, tests
# make demo     everything embedded, on real DTLS; ARGS="--count 4" hands arguments on
# make test     the tests; ARGS="-k cookies" hands arguments on
# make fuzz     each fuzzer for FUZZ_TIME seconds
# make bench    what things cost, beside the stored baseline; ARGS="--quick" is a first look
# make bench-peers   the same load on other servers; ADDRESS=coaps://... is one more
# make lock     resolve the dependencies again (needs uv)
#
# Nothing but Python 3.11+ with its venv module, and make, is needed: dependencies are installed
# into .venv, by hash, when a lock file has changed.

PYTHON ?= python3
UV ?= uv
FUZZ_TIME ?= 60
ARGS ?=
ADDRESS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
COMPILE := $(UV) pip compile --universal --generate-hashes --no-annotate --no-header \
	--python-version 3.11 --quiet

.PHONY: check format lint types imports test demo fuzz bench bench-peers lock peers clean
.DEFAULT_GOAL := check

check: format lint types imports test

format: .venv/test.stamp
	$(BIN)/ruff format --check .

lint: .venv/test.stamp
	$(BIN)/ruff check .

types: .venv/test.stamp
	$(BIN)/mypy

imports: .venv/test.stamp
	$(BIN)/lint-imports

test: .venv/test.stamp peers
	$(BIN)/pytest $(ARGS)

demo: .venv/demo.stamp
	@$(BIN)/coapgate demo $(ARGS)

fuzz: .venv/test.stamp peers
	@for fuzzer in tests/fuzz/fuzz_*.py; do \
		echo "$$fuzzer, $(FUZZ_TIME) seconds"; \
		PYTHONPATH=. $(BIN)/python "$$fuzzer" -max_total_time=$(FUZZ_TIME) \
			-artifact_prefix=.venv/ $(ARGS) || exit 1; \
	done

bench: .venv/bench.stamp
	@$(BIN)/python -m tests.bench $(ARGS)

bench-peers: .venv/bench.stamp peers
	@$(BIN)/python -m tests.bench.peers $(if $(ADDRESS),--address $(ADDRESS)) $(ARGS)

# Build tools of our own and of DTLSSocket are in the locks too, and built packages are not
# isolated from them: nothing is installed that no lock file names.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed" >&2; \
		echo "hint: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/demo.stamp: requirements.lock pyproject.toml | .venv/bin/python
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-index --no-build-isolation --editable .
	@touch $@

.venv/test.stamp: requirements-test.lock .venv/demo.stamp
	$(PIP) install --require-hashes -r requirements-test.lock
	@touch $@

.venv/bench.stamp: requirements-bench.lock .venv/test.stamp
	$(PIP) install --require-hashes -r requirements-bench.lock
	@touch $@

# Real peers in Python: tinydtls, built from source, and atheris. Where they cannot be built the
# tests that need them are skipped, unless COAPGATE_REQUIRE_PEERS=1.
peers: .venv/test.stamp
	@if [ "$$COAPGATE_REQUIRE_PEERS" = 1 ]; then $(MAKE) --no-print-directory .venv/peers.stamp; \
	elif $(HAS_BUILD_TOOLS); then $(MAKE) --no-print-directory .venv/peers.stamp || \
		echo "note: requirements-peers.lock could not be installed; tests of its peers are skipped"; \
	fi

HAS_BUILD_TOOLS = (for tool in autoconf automake libtoolize gcc; do \
		command -v $$tool >/dev/null || exit 1; done) && \
	test -e "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"

.venv/peers.stamp: requirements-peers.lock | .venv/test.stamp
	awk '/^[a-z]/ { tool = /^(cython|setuptools)==/ } tool' $< > .venv/peers-build.lock
	$(PIP) install --require-hashes -r .venv/peers-build.lock
	$(PIP) install --require-hashes --no-build-isolation -r $<
	@touch $@

lock:
	printf '%s\n' hatchling editables | $(COMPILE) $(ARGS) pyproject.toml - --output-file requirements.lock
	printf '%s\n' hatchling editables | $(COMPILE) $(ARGS) pyproject.toml - --extra test \
		--constraint requirements.lock --output-file requirements-test.lock
	printf '%s\n' 'DTLSSocket==0.2.3' 'atheris==3.0.0; python_version < "3.13"' cython setuptools | \
		$(COMPILE) $(ARGS) - --output-file requirements-peers.lock
	$(COMPILE) $(ARGS) pyproject.toml --extra bench --constraint requirements-test.lock \
		--output-file requirements-bench.lock
	@! grep -n '://' requirements*.lock

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
