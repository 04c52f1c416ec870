.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# The system's certificates, as pip trusts them: company proxies have their own.
UV := $(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --constraint constraints.txt
EXAMPLE ?= examples/stdlib-gpt.yaml
# Where this is set, each process compiles torch, kubernetes and the rest anew: half of a process's start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run serve test nightly check format generate pictures e2e zoo families real composed bench clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

# uv links packages out of its cache, so that a second clone does not hold a second copy of torch (5 GB).
$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; say PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv .venv || { echo "python3-venv is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.8

.venv/.ready: $(BIN)/uv pyproject.toml constraints.txt
	@echo "setting up .venv (the first time, torch is a download of several GB)"
	@$(UV) --editable '.[operator,trainer]'
	@touch $@

.venv/.ready-dev: .venv/.ready
	@$(UV) --editable '.[operator,trainer,dev]'
	@touch $@

.venv/.ready-bench: .venv/.ready-dev
	@$(UV) --editable '.[operator,trainer,dev,bench]'
	@touch $@

setup: .venv/.ready ## Set up everything a run needs, into .venv

run: setup ## Train the example pipeline on this machine
	@$(BIN)/pipelinejob run $(EXAMPLE)

serve: .venv/.ready-dev ## Serve SmolLM2-135M over three stages of this machine, at http://127.0.0.1:8000 (docs/serving.md)
	@folder=$$($(BIN)/python tests/smollm2.py) && $(BIN)/pipelinejob serve examples/serve-smollm2.yaml --model $$folder

check: .venv/.ready-dev ## Lint, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.ready-dev ## Format and mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

generate: .venv/.ready-dev ## Write what is generated: CRDs and the chart's copies, API reference, dashboards, rooms
	$(BIN)/python -m pipelinejob_operator.validation.crdfile
	$(BIN)/python charts/dashboards.py
	$(BIN)/python tests/rooms.py

pictures: .venv/.ready-dev ## Draw the pictures of the documentation again: a plan, and the report of a run (chromium)
	$(BIN)/python tests/pictures.py

test: .venv/.ready-dev check ## All tests but those on real nodes and with Kueue's manager
	$(BIN)/python tests/toolchain.py apiserver
	$(BIN)/python -Im pytest -m "not nodes and not kueue" -n 2 --dist loadgroup

e2e: .venv/.ready-dev ## Tests on real nodes: kubelets, containers, helm, Prometheus (Debian, root)
	tests/install-debian.sh
	$(BIN)/python tests/toolchain.py nodes
	$(BIN)/python tests/toolchain.py kueue
	$(BIN)/python tests/images.py
	$(BIN)/python -Im pytest -m "nodes or kueue" tests/e2e tests/cluster/admission/test_kueue.py

nightly: .venv/.ready-dev ## Every property with ten times the examples of `make test`, other ones each time
	$(BIN)/python tests/toolchain.py apiserver
	$(BIN)/python -Im pytest -m hypothesis --hypothesis-profile=nightly -n 2 --dist loadgroup

zoo: .venv/.ready-dev ## 2,000 models of people's habits against plain torch (docs/reliability.md)
	$(BIN)/python -Im pytest tests/trainer/models/test_zoo.py --hypothesis-profile=zoo -n 2 -q

families: .venv/.ready-dev ## Every causal language model of transformers that can be built small: whole against cut (docs/models.md)
	$(BIN)/python tests/families.py

real: .venv/.ready-dev ## A real model, SmolLM2-135M: fine-tuned on one, two and three stages, and out again; its answers (docs/models.md)
	$(BIN)/python tests/real.py --output runs/real
	$(BIN)/python tests/real_answers.py

composed: .venv/.ready-dev ## 200 clusters with obstacles of all kinds, against a real API server (docs/reliability.md)
	$(BIN)/python tests/toolchain.py apiserver
	$(BIN)/python tests/composed.py --cases 200

bench: .venv/.ready-bench ## The benchmarks of docs/benchmarks.md (on a quiet machine: an hour or so)
	$(BIN)/python tests/toolchain.py apiserver
	$(BIN)/python tests/bench/trainer/bench_schedules.py
	$(BIN)/python tests/bench/trainer/bench_schedules.py --ranks 8 --rounds 3 --output bench-schedules-8.json
	$(BIN)/python tests/bench/core/bench_auto.py
	$(BIN)/python tests/bench/core/bench_search.py
	$(BIN)/python tests/bench/trainer/bench_recompute.py
	$(BIN)/python tests/bench/trainer/bench_actions.py
	$(BIN)/python tests/bench/models/bench_decoder.py
	$(BIN)/python tests/bench/models/bench_pipelines.py
	$(BIN)/python tests/bench/models/bench_generality.py
	$(BIN)/python tests/bench/trainer/bench_uneven.py
	$(BIN)/python tests/bench/trainer/bench_truth.py
	$(BIN)/python tests/bench/trainer/bench_truth_families.py
	$(BIN)/python tests/bench/trainer/bench_worth.py
	$(BIN)/python tests/bench/trainer/bench_overhead.py
	$(BIN)/python tests/bench/core/bench_start.py
	$(BIN)/python tests/bench/cluster/bench_admission.py
	$(BIN)/python tests/bench/cluster/bench_planning.py
	$(BIN)/python tests/bench/cluster/bench_late.py
	$(BIN)/python tests/bench/cluster/bench_memory.py
	$(BIN)/python tests/bench/models/bench_loading.py
	$(BIN)/python tests/bench/models/bench_prepare.py
	$(BIN)/python tests/bench/trainer/bench_sharding.py
	$(BIN)/python tests/bench/placement/bench_placement.py
	$(BIN)/python tests/bench/placement/bench_placement_speed.py
	$(BIN)/python tests/toolchain.py kueue
	$(BIN)/python tests/bench/placement/bench_kueue.py
	$(BIN)/python tests/bench/scale/bench_scale.py

clean: ## Remove what was built here (caches outside the folder stay)
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
