# The interface of the project: every target installs what it needs and works a second time quickly.
SHELL := /bin/bash
PYTHON := .venv/bin/python
UV = $(or $(shell command -v uv),.venv/bin/uv)
export SFTJOB_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sftjob
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast soak lint format typecheck generate verify lock lock-torch sbom audit cluster cluster-demo cluster-down bench bench-prepare bench-metrics bench-scale bench-trainer fuzz clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1|/' | column -t -s '|'

install: ## .venv with everything locked, and the project in it
	@sh requirements/install.sh

demo: install ## the main job on a real model, without a cluster
	@$(PYTHON) examples/demo.py

test: install ## every test that gates, the real cluster too where root, Linux and Go are there
	@$(PYTHON) -m pytest tests -m "not soak" $(ARGS)

test-fast: install ## an answer in a minute or so: no ranks, no model, no cluster
	@$(PYTHON) -m pytest tests -m "not soak and not slow and not processes and not model and not cluster" \
	  -n logical --maxprocesses 4 --dist loadfile -x -q $(ARGS)

soak: install ## the long matrices
	@$(PYTHON) -m pytest tests -m soak $(ARGS)

SECONDS_EACH ?= 30
fuzz: install ## 100,000 random SFTJobs; every parser, by what its code reaches (half an hour; each parser SECONDS_EACH=30)
	@$(PYTHON) -m pytest tests/fuzzing -m soak
	@$(if $(wildcard .venv/bin/uv),.venv/bin/uv,uv) pip install -q --python $(PYTHON) --no-deps --require-hashes -r requirements/fuzz.txt
	@PYTHONPATH=operator:trainer:tests $(PYTHON) -m fuzzing.guided $(SECONDS_EACH)

lint: install ## ruff, import rules, house rules
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/lint-imports --no-cache

format: install ## let ruff rewrite the sources
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

typecheck: install ## mypy, strict
	@.venv/bin/mypy

generate: install ## CRD, chart copy and API reference from the models; dashboards; the chart's README
	@$(PYTHON) -m sftjob_operator.api.generate
	@PYTHONPATH=charts $(PYTHON) -m dashboards
	@PYTHONPATH=charts $(PYTHON) -m values_readme

verify: install ## generated files are up to date
	@$(PYTHON) -m sftjob_operator.api.generate --check
	@PYTHONPATH=charts $(PYTHON) -m dashboards --check
	@PYTHONPATH=charts $(PYTHON) -m values_readme --check

lock: ## requirements/*.txt from pyproject.toml, with hashes
	@for extra in operator trainer; do \
	  uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --extra $$extra pyproject.toml -o requirements/$$extra.txt; done
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --all-extras --group dev pyproject.toml -o requirements/dev.txt
	@for group in build s3; do \
	  uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --group $$group -o requirements/$$group.txt; done
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --group kernels -c requirements/trainer.txt -o requirements/kernels.txt
	@FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE uv pip compile -q --universal --python .venv/bin/python --generate-hashes --no-header --no-annotate --group flash --no-deps \
	  --no-build-isolation-package flash-attn -o requirements/flash.txt  # its metadata is made by importing torch
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --group supply -o requirements/supply.txt
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --group bench -c requirements/trainer.txt -o requirements/bench.txt
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --group fuzz -o requirements/fuzz.txt

lock-torch: ## requirements/trainer-TORCH_BACKEND.txt: the trainer with a torch of PyTorch's own index (TORCH_BACKEND=cpu, cu126, ...)
	@test -n "$(TORCH_BACKEND)" || { echo "say which: make lock-torch TORCH_BACKEND=cpu (what uv's --torch-backend takes)"; exit 2; }
	@uv pip compile -q --python-version 3.11 --python-platform linux --generate-hashes --no-header --no-annotate --extra trainer \
	  --torch-backend $(TORCH_BACKEND) pyproject.toml -o requirements/trainer-$(TORCH_BACKEND).txt

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

bench-scale: install ## one operator and a thousand running jobs (as for the cluster; a quick look: ARGS="--jobs 100 --seconds 60")
	@PYTHONPATH=operator:trainer $(PYTHON) -m bench.scale $(ARGS)

bench-trainer: install ## tokens/s against TRL and a plain loop on the same work (16 GB; a quick look: ARGS="--repetitions 1 --steps 4")
	@$(PYTHON) -m bench.trainer $(ARGS)

build/supply: requirements/supply.txt
	@rm -rf $@ && $(PYTHON) -m venv --without-pip $@ && $(UV) pip install -q --python $@/bin/python --require-hashes -r $<

sbom: install build/supply ## dist/sbom-*.json: what is in the images, as CycloneDX
	@build/supply/bin/python requirements/sbom.py $(ARGS)

audit: install build/supply ## the lock files against known vulnerabilities (2: nobody could be asked)
	@build/supply/bin/python requirements/audit.py $(ARGS)

clean: ## what the targets made in this folder (the download cache stays)
	@rm -rf .venv .sftjob build dist .mypy_cache .ruff_cache .pytest_cache
