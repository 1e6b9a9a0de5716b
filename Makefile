# `make help` lists the targets. Both `make reproduce` and `make test` set up their environment first.
SHELL := /bin/bash
comma := ,
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup reproduce test unit smoke nbval bench fuzz kills lint format lab site readme clean

# Compiled modules are kept: without them every process and kernel takes seconds to compile PyTorch anew.
unexport PYTHONDONTWRITEBYTECODE

SCALE ?=
NOTEBOOKS ?=
PYTEST ?=
N ?= 2000
EXTRAS ?= $(if $(filter paper,$(SCALE)),paper)

# The active virtual or conda environment is used; conda's base is left alone. Without one, .venv is made.
ENV := .venv
ifneq ($(strip $(VIRTUAL_ENV)),)
ENV := $(VIRTUAL_ENV)
else ifneq ($(strip $(CONDA_PREFIX)),)
ifneq ($(CONDA_DEFAULT_ENV),base)
ENV := $(CONDA_PREFIX)
endif
endif
PY := $(ENV)/bin/python
# The stamp lies inside the environment and carries this checkout's path, so that neither a new environment nor a
# second checkout that shares one is taken for set up.
# A blank in the environment's path would make two targets of it.
blank := $(subst ,, )
STAMP := $(subst $(blank),\$(blank),$(ENV))/graphnas-lib-$(shell printf '%s' "$(CURDIR)" | cksum | cut -d' ' -f1)$(EXTRAS).stamp

help: ## this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14
	@echo; echo "Options: SCALE=smoke|lite|paper  NOTEBOOKS=\"03 05\"  EXTRAS=paper  PYTEST=\"-k flow\"  N=2000; environment: $(ENV)"

setup: $(STAMP) ## make or complete the environment (done by the others when needed)

$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x "$(PY)" ]; then \
	  for candidate in python3.13 python3.12 python3.11 python3 python; do \
	    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; \
	    then found="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo "Python 3.11, 3.12 or 3.13 with venv must be on the PATH; none was found. Install one (on Debian and Ubuntu also python3-venv), or activate a conda environment made from environment.yml." >&2; exit 1; \
	  fi; \
	  echo "Making $(ENV) with $$("$$found" --version)"; "$$found" -m venv "$(ENV)"; \
	fi
	@"$(PY)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "The environment $(ENV) must have Python 3.11 to 3.13; it has $$("$(PY)" --version 2>&1). Deactivate it, or make another." >&2; exit 1; }
	@echo "Installing into $(ENV) (a few minutes, once)"
	@rm -f "$(ENV)"/graphnas-lib-*.stamp
	@"$(PY)" -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	@touch "$@"

# At paper the stages come first: hours to weeks of a GPU, resumed by the same command. A notebook only opens them.
reproduce: $(STAMP) ## all notebooks, headlessly: every table and figure (SCALE=, NOTEBOOKS=)
	@"$(PY)" -m graphnas_lib $(if $(filter paper,$(SCALE)),$(if $(NOTEBOOKS),reproduce,run --all),reproduce) $(if $(SCALE),--scale $(SCALE)) $(if $(NOTEBOOKS),--notebooks $(NOTEBOOKS))

# Unit tests share the two cores with the smoke run, and then with nbval, which reads what smoke has made. Both are one
# group of processes, which ends with this target.
test: lint ## everything CI checks: lint, unit tests, all notebooks at smoke, nbval
	@log=$$(mktemp); notebooks=; trap 'kill -- $${notebooks:+-$$notebooks} $$(jobs -p) 2>/dev/null || true; rm -f "$$log"' EXIT; \
	set -m; { $(MAKE) --no-print-directory smoke && $(MAKE) --no-print-directory nbval; } >"$$log" 2>&1 & notebooks=$$!; set +m; \
	$(MAKE) --no-print-directory unit; \
	tail -n +1 -f "$$log" & status=0; wait $$notebooks || status=$$?; sleep 1; exit $$status

lint: $(STAMP) ## ruff: format and rules, code and notebooks
	@"$(PY)" -m ruff format --check --quiet . || { echo "Run make format." >&2; exit 1; }
	@"$(PY)" -m ruff check --quiet .

# Two one-thread workers: small networks gain nothing from a second thread. Files go in the order of tests/conftest.py.
# They give way to the smoke run, which is the longer way: one notebook waits for another.
unit: $(STAMP)
	@OMP_NUM_THREADS=1 nice -n 5 "$(PY)" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

# Beside the unit tests, whose processes have the cores: one worker, which has no other to start, and one thread.
smoke: $(STAMP)
	@OMP_NUM_THREADS=1 GRAPHNAS_WORKERS=1 "$(PY)" -m graphnas_lib reproduce --scale smoke

# The committed notebooks, cell by cell. In a copy of the artifacts, so that a test changes no committed figure. Their
# kernels are forks of one process that has imported everything once.
nbval: $(STAMP)
	@home=$$(mktemp -d); export GRAPHNAS_HOME="$$home" OMP_NUM_THREADS=1 JUPYTER_PATH="$$home"; \
	trap 'kill $$warm 2>/dev/null; rm -rf "$$home"' EXIT; mkdir "$$home/data"; "$(PY)" tests/warm_kernel.py "$$home" & warm=$$!; \
	for scale in smoke lite; do if [ -d data/$$scale ]; then cp -R data/$$scale "$$home/data/"; fi; done; \
	GRAPHNAS_DATA="$${GRAPHNAS_DATA:-$(CURDIR)/data}" "$(PY)" -m pytest -q -o timeout=0 -n 2 --dist loadfile --nbval-lax \
	  --nbval-kernel-name=warm --nbval-cell-timeout=600 --nbval-kernel-startup-timeout=300 notebooks/[0-9]*.ipynb

bench: $(STAMP) ## benchmarks, each beside a plain reference
	@"$(PY)" -m pytest -o addopts= -o timeout=0 -o python_files="bench_*.py test_*.py" --benchmark-columns=min,median,rounds tests/benchmarks
	@"$(PY)" tests/benchmarks/table.py

fuzz: $(STAMP) ## N examples of each generated test: networks, files, strings (make fuzz N=20000)
	@OMP_NUM_THREADS=1 GRAPHNAS_FUZZ=$(N) "$(PY)" -m pytest -q -o timeout=0 tests/test_fuzz.py tests/test_broken_files.py $(PYTEST)

kills: $(STAMP) ## the whole road at smoke, killed N times at random and gone on with (make kills N=50)
	@OMP_NUM_THREADS=1 GRAPHNAS_KILLS=$(if $(filter command,$(origin N)),$(N),10) "$(PY)" -m pytest -q -s --slow tests/test_kills.py $(PYTEST)

format: $(STAMP) ## ruff format and the fixes ruff is sure of, code and notebooks
	@"$(PY)" -m ruff check --quiet --fix . ; "$(PY)" -m ruff format .

# Warnings are errors: a link that leads nowhere, an equation that cannot be drawn.
site: $(STAMP) ## notebooks, report and gallery as pages that open without a server: build/site/index.html
	@OMP_NUM_THREADS=1 "$(PY)" -m sphinx -q -W --keep-going -b html -d build/doctrees -c site . build/site
	@echo "The site is build/site/index.html"

readme: $(STAMP) ## write REPORT.md and README's generated blocks again
	@"$(PY)" -m graphnas_lib reproduce --readme

lab: $(STAMP) ## the notebooks in JupyterLab
	@"$(PY)" -c 'import jupyterlab' 2>/dev/null || "$(PY)" -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[lab]'
	@"$(PY)" -m jupyter lab notebooks

clean: ## what runs leave behind: executed copies, smoke artifacts, caches; .venv stays
	@rm -rf notebooks/executed data/smoke figures/smoke data/*/.notebooks.json* data/*/.locks data/*/checkpoints
	@rm -rf .pytest_cache .ruff_cache .benchmarks build dist *.egg-info
	@find graphnas_lib tests -name __pycache__ -type d -prune -exec rm -rf {} +
