# Thin by design: every rule starts one program in scripts/, which reads .config, variables and the environment.
# `make help` prints the lines marked with ##.

MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := run
.SUFFIXES:

PYTHON ?= python3
Q := $(if $(V),,@)
DEFCONFIGS := $(notdir $(wildcard defconfigs/gpt2-* defconfigs/old/gpt2-*))
HOSTS := $(notdir $(wildcard defconfigs/hosts/*))

# Names of the variables on make's own command line: the programs refuse the ones they do not know.
export MAKE_GIVEN := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(v)))),$(v)))
export CONFIG_DIR := $(if $(filter command,$(firstword $(origin O))),$(O),.)

# An active virtual or conda environment is used as it is; otherwise .venv is built from the lock files.
ifneq ($(or $(VIRTUAL_ENV),$(CONDA_PREFIX)),)
PY := python
else
BIN := .venv/bin/
PY := .venv/bin/python
CORE := .venv/.core
DEV := .venv/.dev
endif
PROGRAM = $(Q)$(PY) -m scripts

run: $(CORE) ## train what is not done; resumable, Ctrl-C is safe (default)
	$(PROGRAM).run

# Its own folder, so that an existing .config and its results are left alone; O=dir names another.
quickstart: export CONFIG_DIR := $(if $(filter command,$(firstword $(origin O))),$(O),quickstart)
quickstart: $(CORE) ## V0-V6 in five minutes on two cores, in quickstart/
	$(PROGRAM).defconfig gpt2-ra-quickstart --then-run
	$(PROGRAM).run

list-defconfigs: $(CORE) ## every whole configuration
	$(PROGRAM).list_defconfigs

defconfig-%: $(CORE) ## defconfig-NAME[+HOST]: write .config
	$(PROGRAM).defconfig '$(subst ','\'',$*)'

# Spelled out once more so that the shell completes them.
$(DEFCONFIGS:%=defconfig-%): defconfig-%: $(CORE)
	$(PROGRAM).defconfig '$(subst ','\'',$*)'

menuconfig: $(CORE) ## edit .config in the terminal
	$(PROGRAM).menuconfig

show: $(CORE) ## every value and its source
	$(PROGRAM).show

diffconfig: $(CORE) ## A=file|name B=file|name: what differs (default .config.old and .config)
	$(PROGRAM).diffconfig

savedefconfig: $(CORE) ## NAME=name: keep this .config in defconfigs/
	$(PROGRAM).savedefconfig

check: $(CORE) ## dry run of every step at its real size, on the CPU
	$(PROGRAM).check

plan: $(CORE) ## the exact commands
	$(PROGRAM).plan

estimate: $(CORE) ## how long it will take
	$(PROGRAM).estimate

status: $(CORE) ## what is done, running, stopped, failed, waiting
	$(PROGRAM).status

rerun: $(CORE) ## STEPS=failed, or STEPS="V1 V2": set results aside and train again
	$(PROGRAM).rerun

summary: $(CORE) ## the table of results, also as summary.md and summary.json
	$(PROGRAM).summary

clean: $(CORE) ## remove caches and leftovers of interrupted work; never results
	$(PROGRAM).clean

mrproper: $(CORE) ## clean, and remove .config and token shards; never results
	$(PROGRAM).clean --all

docs: $(CORE) ## write docs/configuration.md and the diagrams
	$(PROGRAM).document
	$(PROGRAM).draw_diagrams

test: $(DEV) ## the tests (at most 6 minutes on two cores)
	$(Q)OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(DEV) ## the long tests
	$(Q)OMP_NUM_THREADS=1 $(PY) -m pytest -m slow -n 2 --dist loadfile

lint: $(DEV) ## ruff, mypy and the import floors
	$(Q)$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && $(BIN)lint-imports

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z%-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile
	@echo 'Variables: any setting without its GPT2_ prefix (STEPS="V0 V3" SEEDS="0 1 2" NGPUS=2), TIME=60 for MAX_TIME,'
	@echo 'O=dir (folder of .config and results), V=1 (show commands), SYSTEM_TORCH=1 (use the installed torch).'
	@echo 'Settings: docs/configuration.md, make menuconfig. One run: gpt2/train_ra_mla.py --help'

# The environment. SYSTEM_TORCH=1 leaves torch to the machine, as clusters want it.
.venv/.core: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2])' || { echo "error: $(PYTHON) is older than 3.11; name another: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Building .venv from requirements.lock (once) ..."
	$(Q)$(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) .venv
	$(Q)$(if $(SYSTEM_TORCH),grep -v '^torch==' requirements.lock > .venv/lock,cp requirements.lock .venv/lock)
	$(Q).venv/bin/python -m pip install --quiet --disable-pip-version-check -r .venv/lock
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.core
	@echo "Adding the tools of requirements-dev.lock (once) ..."
	$(Q).venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@

.PHONY: run quickstart list-defconfigs menuconfig show diffconfig savedefconfig check plan estimate status rerun summary \
	clean mrproper docs test test-slow lint help $(DEFCONFIGS:%=defconfig-%)
