# Every target runs one visible command; `make help` lists the targets and their variables.
.DEFAULT_GOAL := help
.PHONY: help setup run prepare train export report runs compare diff rerun prune sweep ask exam review doctor wheels test test-all drills lint address clean
PYTHON ?= python3
# cuda, the full set, if nvidia-smi finds a GPU, otherwise cpu, the same pins without what needs one; FOR=... at setup is kept
FOR ?= $(or $(patsubst .venv/.for-%,%,$(wildcard .venv/.for-*)),$(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu))
REQUIREMENTS := $(if $(filter cpu,$(FOR)),requirements-cpu.txt,$(if $(filter cuda,$(FOR)),requirements.txt,$(error FOR=$(FOR): expected cpu or cuda)))
READY := .venv/.ready-$(REQUIREMENTS)
include quoting.mk
OPTIONS = $(if $(PARAMS),--params=$(call quoted,$(PARAMS))) $(if $(RUN),--run=$(call quoted,$(RUN))) $(if $(SET),--set=$(call quoted,$(SET))) $(if $(FORCE),--force)
# with WHEELS, packages come from that folder alone, whatever else pip is configured to read
PIP = $(if $(WHEELS),PIP_CONFIG_FILE=/dev/null .venv/bin/pip --isolated install -q --no-index --find-links $(call quoted,$(WHEELS)),.venv/bin/pip install -q)
PYTEST = .venv/bin/python -m pytest -n 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 18
	@printf '%s\n' '  variables:      PARAMS=params/t4.yaml RUN=name SET="learning_rate=1e-4 max_steps=50" FORCE=1' '                  a RUN that exists keeps its own parameters without PARAMS'

run: setup  ## prepare, train and export one job; the same command continues it
prepare: setup  ## only the data stage
train: setup  ## only train, after prepare if that is missing
export: setup  ## only export, after prepare and train if they are missing
report: setup  ## write a run's report.html again from its records
run prepare train export report:
	.venv/bin/python -m lib.runs $@ $(OPTIONS)

runs: setup  ## list the runs: state, age, held-out loss, size on disk
	.venv/bin/python -m lib.runs list
compare: setup  ## compare RUNS="a b c", or all runs; METRIC chooses the best
	.venv/bin/python -m lib.runs compare --runs=$(call quoted,$(RUNS)) --metric=$(call quoted,$(or $(METRIC),eval_loss_after))
diff: setup  ## two executed notebooks a stage beside each other: RUNS="a b"
	.venv/bin/python -m lib.runs diff --runs=$(call quoted,$(RUNS))
rerun: setup  ## repeat the job of RUN from its record, as RUN-rerun, and compare the results
	.venv/bin/python -m lib.runs rerun --runs=$(call quoted,$(RUN))
prune: setup  ## remove checkpoints and merged weights of finished RUNS; asks first unless YES=1
	.venv/bin/python -m lib.runs prune --runs=$(call quoted,$(RUNS)) $(if $(YES),--yes)

ask: setup  ## ask the first GGUF of RUN a question: Q="..."
	.venv/bin/python -m lib.runs ask $(OPTIONS) --question=$(call quoted,$(Q))
exam: setup  ## examine all models of a finished RUN: EXAM=my.jsonl, a hub id, or the bundled set
	.venv/bin/python -m lib.exam -- $(call quoted,$(RUN)) $(call quoted,$(or $(EXAM),bundled:exam))
review: setup  ## write the medical texts as sheets for a clinician; SHEET=review.csv reads one back
	.venv/bin/python -m lib.runs review $(if $(SHEET),--sheet=$(call quoted,$(SHEET)))
sweep: setup  ## train many variants of a job from a sweep file: PARAMS=params/sweep.yaml
	.venv/bin/python -m lib.runs.sweep $(OPTIONS)
doctor:  ## what this machine can do, what the job of PARAMS would need, and what is missing
	@$(or $(wildcard .venv/bin/python),$(PYTHON)) -m lib.runs doctor $(OPTIONS)
test: setup $(if $(filter cpu,$(FOR)),.venv/.kernels)  ## run the tests, without those marked slow
	$(PYTEST) -m 'not slow'
test-all: setup $(if $(filter cpu,$(FOR)),.venv/.kernels)  ## run all tests
	$(PYTEST)
drills: setup  ## break runs on purpose and count what is lost: DRILLS="kill stop" (all take hours)
	.venv/bin/python tests/drills $(DRILLS)

lint: setup  ## check the code: style, format, layers, types, the repository's address
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-logo
	.venv/bin/mypy
	.venv/bin/python -m lib.common.address
address:  ## write the repository's address in CITATION.cff into README and notebooks, for a fork
	$(PYTHON) -m lib.common.address --write

setup: $(READY)  ## make the environment in .venv; WHEELS=/media/stick installs without network, from that folder
$(READY): requirements.txt requirements-cpu.txt
	@$(PYTHON) -c 'import lib.runs'
	$(if $(WHEELS),$(PYTHON) -m lib.runs.offline.check --for $(FOR) $(if $(filter file,$(origin FOR)),,--chosen) -- $(call quoted,$(WHEELS)))
	$(PYTHON) -m venv .venv
	@# without a GPU, torch's CPU build if pip can reach one; PyPI's build for Linux brings several GB of CUDA
	$(if $(filter cpu,$(FOR)),$(if $(WHEELS),,@$(PIP) 'torch==2.13.0+cpu' 2>/dev/null || echo 'no CPU build of torch within reach (see CONTRIBUTING.md): installing the standard one'))
	$(PIP) -r $(REQUIREMENTS) || { echo 'For a machine without network see CONTRIBUTING.md, section Without a network.'; exit 1; }
	@rm -f .venv/.ready-* .venv/.for-* && touch $@ $(if $(filter file,$(origin FOR)),,.venv/.for-$(FOR))
.venv/.kernels: requirements-kernels.txt $(READY)
	@$(PIP) -r $< && touch $@ || echo 'no Triton within reach: the tests of the GPU kernels are skipped'
wheels:  ## download all packages into DIR=/media/stick, for a machine without network (see CONTRIBUTING.md)
	@$(PYTHON) -m venv --clear .cache/wheels && .cache/wheels/bin/pip install -q 'pip>=25' packaging
	.cache/wheels/bin/python -m lib.runs.offline.download --for $(FOR) $(if $(FOR_PYTHON),--python $(FOR_PYTHON)) $(if $(FOR_PLATFORM),--platform $(FOR_PLATFORM)) -- $(call quoted,$(DIR))

clean:  ## remove caches and the environment, never runs
	rm -rf .venv .cache .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis && find . -name __pycache__ -type d -prune -exec rm -rf {} +
