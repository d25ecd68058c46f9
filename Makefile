# Needs Python 3.11 or later with venv and pip, and make. `make help` lists what there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=

APT := DEBIAN_FRONTEND=noninteractive apt-get --quiet --quiet --yes --no-install-recommends \
	-o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20

# $(call ensure,COMMAND,NAME,PACKAGE,LEFT OUT): where the command does not find what is called so, its Debian package is
# installed, by whoever may. What needs it is left out otherwise, and that is said: no reason to fail.
define ensure
	@{ $(1); } >/dev/null 2>&1 || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing $(2) …" >&2; \
		{ $(APT) install $(3) || { $(APT) update && $(APT) install $(3); }; } >/dev/null 2>&1; \
	else false; fi || echo "No $(2), and it cannot be installed here: $(4)" >&2
endef

# pip is told to keep quiet about itself, and about root, who may well want to try this.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help install dev test browser faketime faults bench bench-rebuild lint map shapes openapi lock clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make the virtual environment and install what requirements.lock names

# Only when one of these has changed; the path is kept inside, since an environment cannot be moved.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed, and $(PYTHON) is older: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 \
		|| $(PYTHON) -m venv --clear $(VENV) \
		|| { echo "venv is needed; on Debian: apt install python3-venv" >&2; exit 1; }
	@echo "Installing (a minute, at the first time) …"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

dev: $(INSTALLED) ## Run the whole service here; ARGS="--fresh --port 3001" and more: payloops dev --help
	@$(BIN)/payloops dev --stop-with-parent $(ARGS)

test: lint browser ## Check style, types and layers, and run all tests
	$(BIN)/pytest --numprocesses 2 --dist worksteal $(ARGS)

browser: ## Install Chromium for the tests, where there is none and apt-get may do it
	$(call ensure,command -v chromium || command -v chromium-browser || command -v google-chrome,Chromium,chromium,$\
		tests that look at pages are left out)

faketime: ## Install libfaketime for the faults, where there is none and apt-get may do it
	$(call ensure,ls /usr/lib/*/faketime/libfaketimeMT.so.1 || ls /usr/local/lib/faketime/libfaketimeMT.so.1,$\
		libfaketime,libfaketime,the case clock-jumps is left out)

faults: $(INSTALLED) $(if $(filter --list --help,$(ARGS)),,faketime) ## Let things go wrong and look for lost money; ARGS="--case refunds --seed 7 --seeds 20": see --help
	@PYTHONPATH=tests $(BIN)/python -m faults $(ARGS)

bench: $(INSTALLED) ## Measure the service beside what limits it; ARGS="append http_api --quick": see --help
	PYTHONPATH=tests $(BIN)/python benchmarks $(ARGS)

bench-rebuild: $(INSTALLED) ## Measure a rebuild of projections under load; ARGS="--events 100000"
	$(BIN)/python benchmarks/rebuild.py $(ARGS)

map: $(INSTALLED) ## Write docs/map.md from the code
	$(BIN)/python docs/make_map.py

shapes: $(INSTALLED) ## Write examples of new event types and versions: docs/events.md
	@cd tests && ../$(BIN)/python evolution.py

openapi: $(INSTALLED) ## Write docs/openapi.json from the routes
	$(BIN)/python docs/make_openapi.py

lint: $(INSTALLED) ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

lock: ## Choose the newest versions that pyproject.toml allows, and write the two locks
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv
	build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev \
		--generate-hashes --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml
	build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --extra build \
		--constraint requirements.lock --generate-hashes --custom-compile-command "make lock" \
		--output-file requirements-production.lock pyproject.toml

clean: ## Remove the virtual environment, caches and builds; data stays in .payloops
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
