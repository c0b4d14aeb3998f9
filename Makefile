# The interface of the project: every target installs what it needs and works a second time quickly.
SHELL := /bin/bash
PYTHON := .venv/bin/python
export SFTJOB_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sftjob
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast soak lint format typecheck generate verify lock cluster cluster-demo cluster-down bench bench-prepare bench-metrics bench-trainer clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1|/' | column -t -s '|'

install: ## .venv with everything locked, and the project in it
	@sh requirements/install.sh

demo: install ## the main job on a real model, without a cluster
	@$(PYTHON) examples/demo.py

test: install ## every test that gates, the real cluster too where root, Linux and Go are there
	@$(PYTHON) -m pytest tests -m "not soak" $(ARGS)

test-fast: install ## an answer in a minute: no ranks, no model, no cluster
	@$(PYTHON) -m pytest tests -m "not soak and not processes and not model and not cluster" -x -q $(ARGS)

soak: install ## the long matrices
	@$(PYTHON) -m pytest tests -m soak $(ARGS)

lint: install ## ruff, import rules, house rules
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/lint-imports --no-cache

format: install ## let ruff rewrite the sources
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

typecheck: install ## mypy, strict
	@.venv/bin/mypy

generate: install ## CRD, chart copy and API reference from the models; the dashboards
	@$(PYTHON) -m sftjob_operator.api.generate
	@PYTHONPATH=charts $(PYTHON) -m dashboards

verify: install ## generated files are up to date
	@$(PYTHON) -m sftjob_operator.api.generate --check
	@PYTHONPATH=charts $(PYTHON) -m dashboards --check

lock: ## requirements/*.txt from pyproject.toml, with hashes
	@for extra in operator trainer; do \
	  uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --extra $$extra pyproject.toml -o requirements/$$extra.txt; done
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --all-extras --group dev pyproject.toml -o requirements/dev.txt
	@for group in build s3; do \
	  uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --group $$group -o requirements/$$group.txt; done
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --group kernels -c requirements/trainer.txt -o requirements/kernels.txt
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --group bench -c requirements/trainer.txt -o requirements/bench.txt

cluster: install ## a real Kubernetes with two nodes on this machine (Linux, root, Go)
	@$(PYTHON) tests/devcluster up

cluster-demo: cluster ## install the operator into it with Helm and train the example
	@$(PYTHON) examples/cluster_demo.py

cluster-down: ## end that Kubernetes
	@$(PYTHON) tests/devcluster down

bench: install ## figures of docs/benchmarks.md
	@$(PYTHON) -m bench

bench-prepare: install ## preparation against the bare tokenizer
	@TOKENIZERS_PARALLELISM=true $(PYTHON) -m bench.prepare

bench-metrics: install ## what metrics cost: a scrape, and their share of a training
	@PYTHONPATH=operator:trainer $(PYTHON) -m bench.metrics

bench-trainer: install ## tokens/s against TRL and a plain loop on the same work (16 GB; a quick look: ARGS="--repetitions 1 --steps 4")
	@$(PYTHON) -m bench.trainer $(ARGS)

clean: ## what the targets made in this folder (the download cache stays)
	@rm -rf .venv .sftjob build dist .mypy_cache .ruff_cache .pytest_cache
