# Aurora on one machine: `make up`, then `make down`. Everything happens in this folder: .venv, .aurora.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
VLLM_VENV := .venv-vllm
VLLM_INSTALLED := $(VLLM_VENV)/installed
# Any Python from 3.11 does; 3.12 and 3.11 come first, as for later ones the embedded Redis must be compiled (gcc, make).
PYTHONS := python3.12 python3.11 python3 python3.13 python3.14

.PHONY: help up down status test test-long test-vllm check bench bench-litellm drills

help:
	@echo "make up      start Aurora on this machine (installs into $(VENV) the first time)"
	@echo "make status  show what runs"
	@echo "make down    stop it; the conversations stay"
	@echo "make test    run the tests"
	@echo "make test-long  run those that take minutes: engines and pools through Serve, a pool that scales in the lab"
	@echo "make test-vllm  run the engine vllm for real, on the CPU (an environment of its own, 2.5 GB)"
	@echo "make check   check style, types and the arrows between the folders"
	@echo "make bench   measure, and write docs/benchmarks.md"
	@echo "make bench-litellm  install the LiteLLM proxy into .venv-litellm, for make bench to compare with"
	@echo "make drills  kill machines of the lab while forty clients talk, and write docs/drills.md (root; hours; goes on where it was)"

up: $(INSTALLED)
	@$(BIN)/aurora-cli up

down: $(INSTALLED)
	@$(BIN)/aurora-cli down

status: $(INSTALLED)
	@$(BIN)/aurora-cli status

# What starts Ray runs alone, after the rest, and so does what a busy machine would fail: most of the rest waits for leases and
# clocks, so that several can at a time.
test: $(INSTALLED)
	@$(BIN)/pytest -q -n 3 --dist loadfile -m "not (cluster or lab or alone)"
	@$(BIN)/pytest -q -m "(cluster or lab or alone) and not long"

# What would make the tests longer than somebody waits for; CI does not mind.
test-long: $(INSTALLED)
	@$(BIN)/pytest -q -m long

# Needs nothing of $(VENV).
test-vllm: $(VLLM_INSTALLED)
	@$(VLLM_VENV)/bin/python -m pytest -q -c tests/vllm/pytest.ini --rootdir=. --confcutdir=. tests/vllm

check: $(INSTALLED)
	@$(BIN)/ruff check --quiet --output-format=concise .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }
	@echo "Style, types and imports are in order."

bench: $(INSTALLED)
	@$(BIN)/python -m tests.bench

# LiteLLM pins other versions of what Aurora stands on, so it gets an environment of its own.
bench-litellm: .venv-litellm/installed

.venv-litellm/installed: tests/bench/litellm-requirements.txt | $(INSTALLED)
	@$(BIN)/python -m venv --clear .venv-litellm
	@echo "Installing what tests/bench/litellm-requirements.txt names (some minutes) ..."
	@.venv-litellm/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r tests/bench/litellm-requirements.txt
	@touch $@

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

$(VLLM_INSTALLED): tests/vllm/requirements.lock tests/vllm/install.sh
	@tests/vllm/install.sh $(VLLM_VENV)
