# Every target is one visible command. Variables: PARAMS, RUN, RUNS, SET, FORCE, Q, EXAM, METRIC, YES, DRILLS, PYTHON.
.DEFAULT_GOAL := help
.PHONY: help setup run prepare train export report runs compare rerun prune sweep ask exam test drills lint clean
PYTHON ?= python3
PARAMS ?= params/cpu.yaml
# the full set where an NVIDIA card answers, else the same pins without what needs one
REQUIREMENTS := $(if $(shell nvidia-smi -L 2>/dev/null),requirements.txt,requirements-cpu.txt)
READY := .venv/.ready-$(REQUIREMENTS)
OPTIONS = --params '$(PARAMS)' $(if $(RUN),--run '$(RUN)') $(if $(SET),--set '$(subst ','\'',$(SET))') $(if $(FORCE),--force)

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 18
	@echo '  variables:      PARAMS=params/t4.yaml RUN=name SET="learning_rate=1e-4 max_steps=50" FORCE=1'

run: setup  ## prepare, train, export (PARAMS, RUN, SET, FORCE); the same command continues
	.venv/bin/python -m lib.runs run $(OPTIONS)

prepare: setup  ## only the data stage
	.venv/bin/python -m lib.runs prepare $(OPTIONS)

train: setup  ## train, after what is missing before it
	.venv/bin/python -m lib.runs train $(OPTIONS)

export: setup  ## export, after what is missing before it
	.venv/bin/python -m lib.runs export $(OPTIONS)

report: setup  ## write report.html again from a run's records
	.venv/bin/python -m lib.runs report $(OPTIONS)

runs: setup  ## what there is: state, age, held-out loss, size on disk
	.venv/bin/python -m lib.runs list

compare: setup  ## runs beside each other, RUNS="a b c" or all; METRIC says which is best
	.venv/bin/python -m lib.runs compare --runs '$(RUNS)' --metric '$(or $(METRIC),eval_loss_after)'

rerun: setup  ## the job of RUN again from its record, as RUN-rerun; says whether the result is the same
	.venv/bin/python -m lib.runs rerun --runs '$(RUN)'

prune: setup  ## free checkpoints and merged weights of finished runs (RUNS); shows them and asks, YES=1 does not
	.venv/bin/python -m lib.runs prune --runs '$(RUNS)' $(if $(YES),--yes)

# value: a $ in the question is text, not a variable of make
ask: setup  ## answer Q="..." from a run's first GGUF (RUN), with the disclaimer
	.venv/bin/python -m lib.runs ask $(OPTIONS) --question='$(subst ','\'',$(value Q))'

exam: setup  ## examine a finished run in every format: RUN=name EXAM=my.jsonl (or a hub id; the bundled one)
	.venv/bin/python -m lib.exam '$(RUN)' '$(or $(EXAM),bundled:exam)'

sweep: setup  ## many runs of one sweep file through Ray: PARAMS=params/sweep.yaml; the same command continues
	.venv/bin/python -m lib.runs.sweep $(OPTIONS)

test: setup  ## all tests
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

drills: setup  ## break runs many times and count what is lost (DRILLS="kill stop"; all take hours)
	.venv/bin/python tests/drills $(DRILLS)

lint: setup  ## rules and format of the code, its layers, its types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-logo
	.venv/bin/mypy

setup: $(READY)  ## the environment in .venv, from requirements.txt or requirements-cpu.txt

$(READY): requirements.txt requirements-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, {sys.version.split()[0]} found; try PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@# without a card, torch's CPU build where pip can reach one; what PyPI has for Linux brings several GB of CUDA
	$(if $(filter requirements-cpu.txt,$(REQUIREMENTS)),@.venv/bin/pip install -q 'torch==2.13.0+cpu' 2>/dev/null || echo 'no CPU build of torch within reach (see README): installing the standard one')
	.venv/bin/pip install -q -r $(REQUIREMENTS)
	@rm -f .venv/.ready-* && touch $@

clean:  ## caches and the environment; never touches runs
	rm -rf .venv .cache .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis && find . -name __pycache__ -type d -prune -exec rm -rf {} +
