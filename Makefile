# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
HOST ?= 127.0.0.1
PORT ?= 5000
AUTH ?=
STATE ?= $(CURDIR)/mlruns

.PHONY: setup run ui test everything quick small chaos lint audit bench gpu clean

# pytorchcv, of the tests, comes from the lock alone: it names torchvision, which we do not use.
# pip would compile on one core. Some files of some packages are no valid Python, whence ``true``.
setup: $(READY)

$(READY): pyproject.toml constraints.txt requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --require-hashes --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e .[dev]
	$(BIN)/python -m compileall -qq --workers 0 .venv/lib || true
	touch $@

# make run ARGS="experiment=smoke" passes overrides on.
run: $(READY)
	$(BIN)/python -m search.run $(ARGS)

# Without exec a shell would stay between, and a killed make leave the server running.
# Another HOST than this machine needs AUTH, a file of accounts: docs/security.md.
ui: $(READY)
	@exec $(BIN)/python -m search.ui --host "$(HOST)" --port "$(PORT)" --state "$(STATE)" --auth "$(AUTH)"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread each: where more threads than cores train, they wait for one another at every barrier.
# What takes longest comes first, so that what is left at the end is small.
test quick: export OMP_NUM_THREADS = 1
test: $(READY)
	$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target lint everything

everything:
	$(BIN)/python -m pytest $(SPREAD) tests/e2e tests/integration tests/contract tests/bench tests/unit tests/property

# What can be known in two minutes.
quick: $(READY)
	$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target lint small

small:
	$(BIN)/python -m pytest $(SPREAD) tests/unit tests/property

# Over several processes, file by file: what is costly to begin with is shared within a file.
SPREAD := --numprocesses=auto --dist=loadfile --no-loadscope-reorder

# A hundred kills; CHAOS_SEED=1 make chaos chooses other moments.
chaos: $(READY)
	CHAOS_KILLS=100 $(BIN)/python -m pytest tests/e2e/test_chaos.py -s

# pip-audit has an environment of its own: what it needs is not what is audited.
AUDIT := .venv/audit
audit: $(READY)
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) \
		&& $(AUDIT)/bin/pip install --quiet pip-audit==2.10.1; } \
		|| echo "audit: pip-audit cannot be installed here"
	$(BIN)/python .ci/audit.py $(AUDIT)/bin/pip-audit

# Prints figures; nothing here can fail on a time.
bench: $(READY)
	$(BIN)/python -m pytest tests/bench -m bench -s

# Trains on a CUDA device, under five minutes; elsewhere one line. Makes what it needs itself.
gpu:
	@$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m tests.bench.gpu

clean:
	rm -rf .venv .venv-gpu .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
