# Everything a person types. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
PYTEST := .venv/bin/pytest
NEXTFLOW := bin/nextflow
# Tests and the demo stay off the network and start no more threads than they say.
export OMP_NUM_THREADS ?= 1
export NXF_ANSI_LOG ?= false

.PHONY: help setup comparators demo test quick fuzz test-faults audit test-slurm test-containers test-offline lint docs site lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-16s %s\n", $$1, $$2 }'

setup: ## install what is missing: locked environment .venv, Nextflow (below this folder)
	@command -v $(PYTHON) >/dev/null || { echo "setup: no $(PYTHON) found; install Python 3.11 or 3.12 (Debian, Ubuntu: apt-get install python3 python3-venv)." >&2; exit 1; }
	@$(PYTHON) bin/setup

comparators: setup ## install the programs proseg (needs Rust's cargo) and comseg for --compare
	@$(PYTHON) bin/setup_comparators

demo: setup ## run the pipeline on the small samples in assets/demo; says where the report is
	@echo "demo: the pipeline on assets/demo/samplesheet.csv, a few minutes"
	@mkdir -p .istseg/demo
	@cd .istseg/demo && ../../$(NEXTFLOW) run ../.. -profile demo --outdir "$(CURDIR)/results/demo" -resume
	@echo "demo: open results/demo/report.html in a browser"

# A file's tests share runs of Nextflow, so one worker gets them; in the order of the folders, because those that run it take longest.
test: setup ## all tests, with the real Nextflow
	@$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -q

quick: setup ## the fast tests
	@$(PYTEST) -n 2 -q -m "not slow and not pipeline" tests/unit tests/stages

fuzz: setup ## 20,000 broken samplesheets, raw folders and lists: only clear errors (two minutes)
	@PYTHONPATH=tests .venv/bin/python tests/faults/fuzz.py --inputs 20000

test-faults: setup ## broken inputs, killed stages, full disks, the scan for unsafe code (root mounts the small disks)
	@ISTSEG_TEST_LARGE=1 $(PYTEST) -q tests/faults tests/test_bad_inputs.py

audit: setup ## bandit over the package, pip-audit over the locked packages (asks an advisory service on the network)
	@$(PYTHON) bin/audit

test-slurm: setup ## the demo on a real one-node SLURM (root; Debian packages slurm-wlm and munge)
	@ISTSEG_TEST_SLURM=1 $(PYTEST) -q tests/pipeline/slurm

test-containers: setup ## pipeline, canary and memory limits in real containers (podman, with the image istseg-core)
	@command -v podman >/dev/null || { echo "test-containers: there is no podman (Debian, Ubuntu: apt-get install podman)." >&2; exit 1; }
	@ISTSEG_TEST_CONTAINERS=1 $(PYTEST) -q tests/pipeline/containers tests/pipeline/offline

test-offline: setup ## set-up and demo from a bundle with wheels, without a network (root; fetches all packages, 20 GB of disk)
	@ISTSEG_TEST_OFFLINE=1 $(PYTEST) -q tests/pipeline/offline

lint: setup ## ruff and nextflow lint
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@bin/lint_nextflow

docs: setup ## write the parameter tables of docs/usage.md from nextflow_schema.json
	@.venv/bin/python bin/docs_params

site: setup ## build the documentation as a site below site/ (its programs below .istseg/site)
	@uv=$$(command -v uv || echo .istseg/bootstrap/bin/uv); \
		[ -x .istseg/site/bin/mkdocs ] || $$uv venv -q --python .venv/bin/python .istseg/site; \
		$$uv pip sync -q --require-hashes --python .istseg/site/bin/python docs/requirements.lock
	@.istseg/site/bin/mkdocs build -q && echo "site: open site/index.html in a browser"

lock: setup ## resolve pyproject.toml again into requirements.lock and the locks of the images
	@bin/lock

clean: ## remove results and work folders (keeps .venv and Nextflow)
	@rm -rf results work .nextflow .nextflow.log* .istseg/demo .pytest_cache .ruff_cache
