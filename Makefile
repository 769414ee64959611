# Every target makes the environment it needs; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
PYTHON := .venv/bin/python
STAMP := .venv/.installed
BENCH_PYTHON := .venv-bench/bin/python
BENCH_STAMP := .venv-bench/.installed
export UV_LINK_MODE ?= hardlink
# A venv that happens to be active must not receive our packages.
unexport VIRTUAL_ENV

.PHONY: help install install-ray demo dev test check format soak bench bench-quick image image-check wheel lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv from the lock file, nothing else

$(STAMP): requirements-dev.lock pyproject.toml
	@command -v $(UV) >/dev/null 2>&1 || { python3 -m venv .uv && .uv/bin/python -m pip install --quiet uv; }
	$(UV) venv --quiet --allow-existing --python '>=3.11,<3.13' .venv
	$(UV) pip sync --quiet --compile-bytecode --python $(PYTHON) --require-hashes requirements-dev.lock
	$(UV) pip install --quiet --python $(PYTHON) --no-deps --editable .
	@touch $@

$(BENCH_STAMP): requirements-bench.lock pyproject.toml
	@command -v $(UV) >/dev/null 2>&1 || { python3 -m venv .uv && .uv/bin/python -m pip install --quiet uv; }
	$(UV) venv --quiet --allow-existing --python '>=3.11,<3.13' .venv-bench
	$(UV) pip sync --quiet --compile-bytecode --python $(BENCH_PYTHON) --require-hashes requirements-bench.lock
	$(UV) pip install --quiet --python $(BENCH_PYTHON) --no-deps --editable .
	@touch $@

install-ray: .venv-ray/.installed  ## make .venv-ray, the same and Ray: nodes and runs of a cluster (docs/distributed.md)

.venv-ray/.installed: requirements-ray.lock pyproject.toml
	@command -v $(UV) >/dev/null 2>&1 || { python3 -m venv .uv && .uv/bin/python -m pip install --quiet uv; }
	$(UV) venv --quiet --allow-existing --python '>=3.11,<3.13' .venv-ray
	$(UV) pip sync --quiet --python .venv-ray/bin/python --require-hashes requirements-ray.lock
	$(UV) pip install --quiet --python .venv-ray/bin/python --no-deps --editable .
	@touch $@

demo: $(STAMP)  ## from inbox to release on the embedded defaults, no network needed
	$(PYTHON) -m cem_assets.cli demo

dev: $(STAMP)  ## open the Dagster UI, with MLflow beside it
	$(PYTHON) -m cem_assets.cli dev

test: $(STAMP)  ## every test a bare machine can run (starts its own S3 server)
	$(PYTHON) -m pytest $(PYTEST_ARGS)

check: $(STAMP)  ## lint, types, import contracts
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PYTHON) -m cem_assets_tests.tree_rules

format: $(STAMP)  ## let ruff rewrite what it can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

soak: $(STAMP)  ## the long faults and scales (about two hours)
	$(PYTHON) -m pytest -m soak --timeout 7200 $(PYTEST_ARGS)

bench: $(BENCH_STAMP)  ## measure beside peers (in .venv-bench), as ratios in one run; writes perf/results/latest.json and latest.md (under an hour)
	$(BENCH_PYTHON) -m perf $(BENCH_ARGS)

bench-quick: $(BENCH_STAMP)  ## the same on small inputs (five minutes)
	$(BENCH_PYTHON) -m perf --quick $(BENCH_ARGS)

wheel: $(STAMP)  ## build dist/*.whl
	$(UV) build --quiet --wheel --python $(PYTHON) --out-dir dist .

image: wheel  ## build the container image (needs a container engine)
	docker build --tag cem-assets:latest .

image-check: wheel  ## the Dockerfile's steps in a clean folder, without a container engine
	deploy/image_check.sh $(UV)

lock:  ## resolve pyproject.toml again into the three lock files (they name no host)
	$(UV) pip compile --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --quiet $(LOCK_ARGS) pyproject.toml -o requirements.lock
	$(UV) pip compile --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --quiet $(LOCK_ARGS) -c requirements.lock pyproject.toml --group dev -o requirements-dev.lock
	$(UV) pip compile --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --quiet $(LOCK_ARGS) -c requirements-dev.lock pyproject.toml --group bench -o requirements-bench.lock
	$(UV) pip compile --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --quiet $(LOCK_ARGS) -c requirements.lock pyproject.toml --extra ray -o requirements-ray.lock

clean:  ## remove build products; the store in .cem_assets stays
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
