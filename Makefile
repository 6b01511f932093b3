# Aurora on one machine: `make up`, then `make down`. Everything happens in this folder: .venv, .aurora.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# Any Python from 3.11 does; 3.12 and 3.11 come first, as for later ones the embedded Redis must be compiled (gcc, make).
PYTHONS := python3.12 python3.11 python3 python3.13 python3.14

.PHONY: help up down status test check bench drills

help:
	@echo "make up      start Aurora on this machine (installs into $(VENV) the first time)"
	@echo "make status  show what runs"
	@echo "make down    stop it; the conversations stay"
	@echo "make test    run the tests"
	@echo "make check   check style, types and the arrows between the folders"
	@echo "make bench   measure, and write docs/benchmarks.md"
	@echo "make drills  kill machines of the lab while forty clients talk, and write docs/drills.md (root; hours; goes on where it was)"

up: $(INSTALLED)
	@$(BIN)/aurora-cli up

down: $(INSTALLED)
	@$(BIN)/aurora-cli down

status: $(INSTALLED)
	@$(BIN)/aurora-cli status

# What starts Ray runs alone, after the rest: most of the rest waits for leases and clocks, so that several can at a time.
test: $(INSTALLED)
	@$(BIN)/pytest -q -n 3 --dist loadfile -m "not cluster and not lab"
	@$(BIN)/pytest -q -m "cluster or lab"

check: $(INSTALLED)
	@$(BIN)/ruff check --quiet --output-format=concise .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }
	@echo "Style, types and imports are in order."

bench: $(INSTALLED)
	@$(BIN)/python -m tests.bench

drills: $(INSTALLED)
	@$(BIN)/python -m tests.drills

# Once, and again when what is to be installed has changed.
$(INSTALLED): requirements.lock pyproject.toml
	@set -e; \
	found=; \
	for python in $(PYTHONS); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "Aurora needs Python 3.11 or newer, and there is none on the PATH. On Debian: sudo apt-get install python3 python3-venv"; exit 1; \
	fi; \
	if ! $$found -c 'import ensurepip, venv' 2>/dev/null; then \
	    version=$$($$found -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "$$found cannot make virtual environments. On Debian: sudo apt-get install python$$version-venv"; exit 1; \
	fi; \
	[ -x $(BIN)/python ] && $(BIN)/python -c '' 2>/dev/null || { echo "Making $(VENV) with $$($$found --version) ..."; $$found -m venv --clear $(VENV); }; \
	echo "Installing what requirements.lock names (some minutes the first time) ..."; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	touch $@
