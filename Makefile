# make env    .venv with everything for tests and demo      make check   style, types, import layers, doctests
# make test   the whole suite                               make bench   benchmarks, small; see benchmarks/
# make demo   a real and a simulated image through the whole pipeline
# make audit  compare constraints.txt with the published advisories; needs a network
#
# A bare machine with python3 (>= 3.11), pip and make is enough. pip installs the versions of
# constraints.txt from its configured index.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
OUT    ?= out

.PHONY: env demo test check bench audit pin clean
.DEFAULT_GOAL := env

env: $(STAMP)

# Installs again only if the dependencies have changed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fcnpipe needs Python 3.11 or newer: make env PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dask,prefect,remote,test]'
	@touch $@

demo: env
	$(BIN)/fcnpipe demo $(OUT)

test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q fcnpipe

bench: env
	$(BIN)/python -m benchmarks

audit:
	@test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit \
	    && build/audit/bin/python -m pip install --quiet pip-audit 2>build/audit/log; } \
	    || { echo 'audit: pip-audit cannot be installed here: run it on a machine with network access' >&2; exit 2; }
	@build/audit/bin/pip-audit --no-deps --disable-pip -r constraints.txt >build/audit/report 2>build/audit/log; \
	    code=$$?; cat build/audit/report; test $$code = 0 && tail -n 1 build/audit/log; \
	    test $$code = 0 || test -s build/audit/report \
	    || { echo 'audit: the advisories cannot be reached (build/audit/log): run it on a machine with network access' >&2; exit 2; }; \
	    exit $$code

# After a change of pyproject.toml: pin the newest compatible versions in constraints.txt.
pin:
	rm -rf build/pin && $(PYTHON) -m venv build/pin
	build/pin/bin/python -m pip install --quiet -e '.[dask,prefect,remote,test]'
	echo '# Versions that the test suite ran with; "make env" installs them. After a change of pyproject.toml: make pin.' > constraints.txt
	build/pin/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//' >> constraints.txt

clean:
	rm -rf $(OUT) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
