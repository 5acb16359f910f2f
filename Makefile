# Everything runs in environments made here; a second call reuses them.
#   make demo         train a tiny policy with rewards from a Gym server
#   make test         the whole test suite
#   DEVICE=gpu        build the GPU environment instead of the CPU one

PYTHON ?= python3
DEVICE ?= cpu
BIN := .venv/bin

.PHONY: help setup browser demo test test-nemo-rl check fix docs pins bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## Make .venv, and .venv-gym where Python 3.12+ is installed
	@$(PYTHON) tools/env.py train --device $(DEVICE)
	@$(PYTHON) tools/env.py gym || [ $$? -eq 75 ]

browser: ## Install Debian's Chromium, for the tests of pages; they skip without it
	@$(PYTHON) tools/env.py browser || [ $$? -eq 75 ]

runs/demo/policy/model.safetensors: examples/tiny_policy.py
	@$(PYTHON) tools/env.py train --device $(DEVICE)
	@$(BIN)/python examples/tiny_policy.py --output runs/demo

demo: ## Train the demo: real verl, real vLLM, rewards over HTTP
	@$(PYTHON) tools/env.py train --device $(DEVICE)
	@$(MAKE) --no-print-directory runs/demo/policy/model.safetensors
	@$(BIN)/rlbridge run --framework verl --config examples/demo.yaml

test: setup ## Run every test that can run here
	@$(BIN)/python -m pytest

test-nemo-rl: ## Run the NeMo-RL tests with a clone of it: make test-nemo-rl NEMO_RL=path
	@test -n "$(NEMO_RL)" || { echo "make test-nemo-rl NEMO_RL=<clone of NVIDIA-NeMo/RL>"; exit 2; }
	@$(PYTHON) tools/nemo_rl_env.py "$(NEMO_RL)"
	@OMP_NUM_THREADS=1 .venv-nemo-rl/bin/python -m pytest tests/nemo_rl

check: setup ## Lint, format and type-check
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

fix: setup ## Format and mend what ruff can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: setup ## Write the generated references in docs/ again
	@$(BIN)/python -m tools.docs

pins: ## Write tools/constraints.txt again from pyproject.toml
	@$(PYTHON) tools/env.py pins

bench: setup ## Run the quick form of every benchmark
	@for name in gym_client gym_faults onpolicy drift gateway gateway_start transforms rollouts_kill; do \
		echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name --quick || exit 1; done

clean: ## Remove environments, caches and runs
	rm -rf .venv .venv-gym .venv-nemo-rl .venv-uv .mypy_cache .pytest_cache .ruff_cache .hypothesis runs build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
