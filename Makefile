# Every target makes the environment it needs; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
PYTHON := .venv/bin/python
STAMP := .venv/.installed
BENCH_PYTHON := .venv-bench/bin/python
BENCH_STAMP := .venv-bench/.installed
DOCS_PYTHON := .venv-docs/bin/python
DOCS_STAMP := .venv-docs/.installed
export UV_LINK_MODE ?= hardlink
# A venv that happens to be active must not receive our packages.
unexport VIRTUAL_ENV

.PHONY: help install install-ray demo docs dev test check format soak bench bench-quick image image-check wheel lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Make the environment in folder $(1) from lock file $(2), with this checkout installed as editable.
define make_environment
	@command -v $(UV) >/dev/null 2>&1 || { python3 -m venv .uv && .uv/bin/python -m pip install --quiet uv; }
	$(UV) venv --quiet --allow-existing --python '>=3.11,<3.13' $(1)
	$(UV) pip sync --quiet --compile-bytecode --python $(1)/bin/python --require-hashes $(2)
	$(UV) pip install --quiet --python $(1)/bin/python --no-deps --editable .
	@touch $@
endef

install: $(STAMP)  ## make .venv from the lock file, nothing else

$(STAMP): requirements-dev.lock requirements.lock pyproject.toml
	$(call make_environment,.venv,requirements-dev.lock)

$(BENCH_STAMP): requirements-bench.lock requirements-dev.lock requirements.lock pyproject.toml
	$(call make_environment,.venv-bench,requirements-bench.lock)

install-ray: .venv-ray/.installed  ## make .venv-ray, the same and Ray: nodes and runs of a cluster (docs/distributed.md)

.venv-ray/.installed: requirements-ray.lock requirements.lock pyproject.toml
	$(call make_environment,.venv-ray,requirements-ray.lock)

demo: $(STAMP)  ## from inbox to release on the embedded defaults, no network needed
	$(PYTHON) -m cem_assets.cli demo

dev: $(STAMP)  ## open the Dagster UI, with MLflow beside it
	$(PYTHON) -m cem_assets.cli dev

docs: $(DOCS_STAMP)  ## build the documentation into site/; fails on a broken link
	rm -rf build/docs site
	mkdir -p build/docs/perf
	cp -R README.md CONTRIBUTING.md CHANGELOG.md LICENSE docs examples build/docs/
	cp perf/README.md build/docs/perf/
	$(DOCS_PYTHON) -m cem_assets_tests.links
	.venv-docs/bin/zensical build --clean --strict

$(DOCS_STAMP): requirements-docs.lock
	@command -v $(UV) >/dev/null 2>&1 || { python3 -m venv .uv && .uv/bin/python -m pip install --quiet uv; }
	$(UV) venv --quiet --allow-existing --python '>=3.11,<3.13' .venv-docs
	$(UV) pip sync --quiet --python $(DOCS_PYTHON) --require-hashes requirements-docs.lock
	@touch $@

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

COMPILE = $(UV) pip compile --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --no-header --quiet $(LOCK_ARGS)
# uv resolves every environment as a whole; of the second file only those packages stay that the first one lacks.
ONLY_NEW = awk 'NR == FNR { known[$$0]; next } /^[^ ]/ { is_new = !($$0 in known) } is_new'

lock:  ## resolve pyproject.toml again into the lock files, which name no host; those of dev, bench and ray hold what they add
	$(COMPILE) pyproject.toml -o requirements.lock
	$(COMPILE) -c requirements.lock pyproject.toml --extra ray -o requirements-ray.lock
	$(COMPILE) -c requirements.lock pyproject.toml --group dev -o requirements-dev.lock
	$(COMPILE) -c requirements-dev.lock pyproject.toml --group bench -o requirements-bench.lock
	$(COMPILE) --group docs -o requirements-docs.lock
	{ echo '-r requirements-dev.lock'; $(ONLY_NEW) requirements-dev.lock requirements-bench.lock; } >requirements.new
	mv requirements.new requirements-bench.lock
	for name in dev ray; do \
	  { echo '-r requirements.lock'; $(ONLY_NEW) requirements.lock requirements-$$name.lock; } >requirements.new && \
	  mv requirements.new requirements-$$name.lock || exit 1; \
	done

clean:  ## remove build products; the store in .cem_assets stays
	rm -rf dist build site .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
