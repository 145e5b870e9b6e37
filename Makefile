# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
HOST ?= 127.0.0.1
PORT ?= 5000
AUTH ?=
STATE ?= $(CURDIR)/mlruns

.PHONY: setup run ui test searches breaks rooms units chaos lint audit bench gpu clean

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
test: export OMP_NUM_THREADS = 1
test: $(READY)
	$(MAKE) --no-print-directory --jobs=5 --keep-going --output-sync=target lint searches breaks rooms units

# Four processes at a time beside lint, because tests wait a lot: for servers, and while others measure.
# Nor do they wait for one another's measurements, of which no figure matters here.
# What is costly to begin with is shared within a process: one search that many files look at.
E2E := tests/e2e/test_
BREAKS := $(addprefix $(E2E),bad_input.py chaos.py engines.py interrupt.py small_disk.py wheel.py) \
	tests/integration/test_ray_cluster.py
SEARCHES := $(filter-out $(BREAKS) $(E2E)page.py,$(wildcard $(E2E)*.py)) \
	tests/integration/test_tracking.py
ROOMS := $(filter-out $(BREAKS) $(SEARCHES),$(wildcard tests/integration/test_*.py))
UNITS := $(E2E)page.py tests/bench tests/contract tests/property tests/unit

searches:
	CNN_SEARCH_LOCKS=$$(mktemp -d) $(BIN)/python -m pytest $(SEARCHES)

breaks:
	CNN_SEARCH_LOCKS=$$(mktemp -d) $(BIN)/python -m pytest $(BREAKS)

rooms:
	CNN_SEARCH_LOCKS=$$(mktemp -d) $(BIN)/python -m pytest $(ROOMS)

units:
	CNN_SEARCH_LOCKS=$$(mktemp -d) $(BIN)/python -m pytest $(UNITS)

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
