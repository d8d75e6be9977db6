# Each target works alone on a fresh clone: what it needs is installed into .venv first, once.
#
# torch is whatever build pip finds for constraints.txt. Without a GPU the CPU build is enough and
# much smaller: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
PACKAGES := node dht swarm crypto cli

.DEFAULT_GOAL := help
.PHONY: help demo test check bars dev compiled clean

help:
	@echo "make demo    a model in six processes answers, and loses one in mid-answer"
	@echo "make test    every test, those with real processes too"
	@echo "make check   format, lint, types, import contracts"
	@echo "make bars    measure every bar, and print a table"
	@echo "make dev     only install into .venv"

demo: compiled
	@$(BIN)/potluck demo

# Long files first, for a worker that has none left idles: xdist would begin with those of many
# tests. One that hangs tells where it stands, and ends the run.
test: compiled
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
		-o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true integration tests

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bars: compiled
	$(BIN)/python -m integration.bars

dev: compiled

# as pip does for what it copies: an editable package would else be compiled at each start of a
# process wherever Python may not write beside the source
compiled: $(INSTALLED)
	@$(BIN)/python -m compileall -q $(addprefix $(CURDIR)/,__init__.py errors.py $(PACKAGES))

$(INSTALLED): pyproject.toml setup.py constraints.txt
	@echo "Installing into .venv; this takes a few minutes, once."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
