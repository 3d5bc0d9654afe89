# Commands of the project. `make help` lists them; they call `polar-distill`, whose --help lists all commands.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # targets on one command line build on each other
.PHONY: help setup test test-golden lint format dump-teacher train-student evaluate evaluate-teacher predict render \
	export latency doctor bench clean simulate store-info store-verify store-repair store-convert demo train-teacher \
	sweep compare bench-gpu proof browser view new-dataset class-frequencies

# Variables of the user. DATA and TEACHER may also come from the environment.
DATA ?=##                         folder of the dataset; of SemanticKITTI, the one that holds sequences/00/velodyne/*.bin
TEACHER ?=##                      published Cylinder3D checkpoint (.pt or .safetensors); several to dump their average
DATASET =##                       description of DATA's files and classes, a YAML file [that of CONFIG]
CACHE = cache/semantic_kitti##    target store: written by stage one, read by stage two
EXPERIMENT = full##               experiment: a name under configs/experiments, or a YAML file
EXPERIMENTS = baseline vpd lwd logit full## experiments that sweep trains
SEEDS = 0##                       seeds that sweep trains each experiment with: SEEDS="0 1 2" or SEEDS=0-2
CHROMIUM ?=##                    browser that tests open a page with [chromium, chromium-browser or google-chrome]
RUNS = runs/sweep##               where sweep writes, and what compare compares: folders of runs
PAGE = runs/comparison.html##     what compare writes; the tables beside it get its name
TEACHER_RUN = runs/teacher##      folder of a teacher's own training
RUN = runs/$(patsubst %.yaml,%,$(notdir $(EXPERIMENT)))## folder of one training run [runs/ and the experiment's name]
WEIGHTS =##                       a PolarNet state dict to evaluate or predict with, instead of the student in RUN
SPLIT =##                         splits or sequences to evaluate or predict: SPLIT="val 00"
OUT = $(RUN)/predictions##        where predictions go [predictions/ in RUN]
VIEWS = 1##                       views of each scan that evaluate and predict average over
ZIP =##                           predict writes a zip for the benchmark's server here as well
SCAN =##                          scans to render or view: SCAN="08/000000 08/000100"
PICTURES = $(RUN)/pictures##      where pictures go [pictures/ in RUN]
SIMULATED = data/simulated##      where simulate writes: a DATA folder
JOBS = 1##                        processes that simulate or sweep at a time
RAY =##                           dump-teacher and sweep on a Ray cluster: auto, local or host:port
CONFIG =##                        settings of the dump, a YAML file [configs/teachers/cylinder3d.yaml]
LIVE =##                          scan-views on which store-verify runs the TEACHER again
TO =##                            where store-convert writes
PROFILE = train##                 what store-convert keeps: train or full; empty to say it with SET
SHIPPED = $(RUN)_shipped##          folder that export writes: the student as one ships it
CALIBRATE =##                     folder of scans for eight-bit graphs of export as well
DEVICE = auto##                   auto, cpu, cuda or cuda:1
RESUME =##                        1 = go on with the training run in RUN
DELETE_MANY =##                   1 = store-repair may delete more than 5 % of CACHE
SET =##                           settings to change: SET="optimiser.learning_rate=1e-3 epochs=10" (no spaces inside a value)
TESTS = tests##                   what `make test` runs: paths and pytest options
WORKERS = 3##                     processes that `make test` runs tests in; many tests wait for programs that they start
BENCH =##                         names under tests/benchmarks, all when empty
PYTHON = python3##                Python 3.11 or newer that makes the environment

VENV_PYTHON = .venv/bin/python
POLAR_DISTILL = $(VENV_PYTHON) -m polar_distill
INSTALLED = .venv/.installed
PIP_INSTALL = $(VENV_PYTHON) -m pip install -q --disable-pip-version-check -c constraints.txt

# quote: one shell word, whatever it holds. option: a flag and the value of a variable, nothing if that is empty.
quote = '$(subst ','\'',$(strip $(1)))'
option = $(if $(strip $($(2))),$(1) $(call quote,$($(2))))
settings = $(foreach pair,$(SET),--set $(call quote,$(pair)))
splits = $(foreach split,$(SPLIT),--split $(call quote,$(split)))
student = $(if $(strip $(WEIGHTS)),$(call option,--weights,WEIGHTS) $(call option,--experiment,EXPERIMENT),$(call option,--run,RUN))

help: ## this list
	@echo "Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' Makefile
	@echo "Variables (make <target> NAME=value):"
	@awk 'match($$0, /^[A-Z]+ \??=.*##/) {name = $$1; value = substr($$0, 1, RLENGTH - 2); sub(/^[A-Z]+ \??= ?/, "", value); \
		text = substr($$0, RLENGTH + 1); sub(/^ +/, "", text); \
		printf "  %-15s %s%s\n", name, text, value == "" || value ~ /\$$/ ? "" : " [" value "]"}' Makefile
	@echo "Example: make dump-teacher train-student evaluate DATA=/data/kitti/dataset TEACHER=cylinder3d.pt"

setup: $(INSTALLED) ## make .venv with the exact versions in constraints.txt

# --no-build-isolation builds the project with the setuptools of constraints.txt instead of whatever is newest.
$(INSTALLED): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ". Name another one with PYTHON=.")'
	@echo "Setting up .venv (about a minute, plus the download of PyTorch) ..."
	@$(PYTHON) -m venv .venv
	@$(PIP_INSTALL) setuptools
	@$(PIP_INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@

demo: $(INSTALLED) ## see it work in minutes, with no dataset, checkpoint or GPU: students with and without its teacher
	$(POLAR_DISTILL) demo

test: $(INSTALLED) browser ## run all tests (GOLDEN_DIR= and SCANS_DIR= name the folders of reference outputs and scans)
	$(VENV_PYTHON) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

test-golden: $(INSTALLED) ## run the tests against the reference outputs in GOLDEN_DIR= with the scans in SCANS_DIR=
	$(VENV_PYTHON) -m pytest tests/golden

lint: $(INSTALLED) ## check style, formatting and types
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

format: $(INSTALLED) ## format the code and fix what can be fixed
	$(VENV_PYTHON) -m ruff check --fix-only .
	$(VENV_PYTHON) -m ruff format .

# Chromium is installed only where that can be done without asking for a password.
browser: ## find the Chromium that tests open a page with (CHROMIUM=), or install it
	@for name in $(or $(CHROMIUM),chromium chromium-browser google-chrome); do \
		command -v "$$name" >/dev/null && exit 0; done; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "note: no Chromium for the tests of pages; install it, or name it with CHROMIUM="; exit 0; fi; \
	echo "Installing Chromium for the tests ..."; export DEBIAN_FRONTEND=noninteractive; \
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null

simulate: need-SIMULATED $(INSTALLED) ## write simulated, labelled scans of made-up streets to SIMULATED
	$(POLAR_DISTILL) simulate $(call option,--out,SIMULATED) $(call option,--jobs,JOBS) $(settings)

dump-teacher: need-DATA need-TEACHER $(INSTALLED) ## stage one: run the TEACHER over DATA and write its targets to CACHE
	$(POLAR_DISTILL) dump $(call option,--data,DATA) $(call option,--teacher,TEACHER) \
		$(call option,--cache,CACHE) $(call option,--config,CONFIG) $(call option,--device,DEVICE) \
		$(call option,--ray,RAY) $(settings)

train-teacher: need-DATA $(INSTALLED) ## train a Cylinder3D on labelled DATA, where no published checkpoint fits
	$(POLAR_DISTILL) train-teacher $(call option,--data,DATA) $(call option,--run,TEACHER_RUN) \
		$(call option,--config,CONFIG) $(call option,--device,DEVICE) \
		$(if $(filter-out 0 no false,$(RESUME)),--resume) $(settings)

store-info: $(INSTALLED) ## say what is in CACHE, and with DATA what is missing
	@$(POLAR_DISTILL) info $(call option,--cache,CACHE) $(call option,--data,DATA) \
		$(call option,--config,CONFIG) $(settings)

store-verify: $(INSTALLED) ## check every checksum of CACHE; with DATA for changed scans; LIVE=3 runs the TEACHER again
	@$(POLAR_DISTILL) verify $(call option,--cache,CACHE) $(call option,--data,DATA) \
		$(call option,--config,CONFIG) $(settings) \
		$(if $(strip $(LIVE)),$(call option,--live,LIVE) $(call option,--teacher,TEACHER) $(call option,--device,DEVICE))

store-repair: need-DATA need-TEACHER $(INSTALLED) ## delete what is damaged in CACHE and dump it again, and what is missing
	$(POLAR_DISTILL) repair $(call option,--data,DATA) $(call option,--teacher,TEACHER) \
		$(call option,--cache,CACHE) $(call option,--config,CONFIG) $(call option,--device,DEVICE) \
		$(if $(filter-out 0 no false,$(DELETE_MANY)),--delete-many) $(settings)

store-convert: need-TO $(INSTALLED) ## write CACHE with fewer arrays or smaller encodings to TO, without the teacher
	$(POLAR_DISTILL) convert $(call option,--cache,CACHE) $(call option,--to,TO) \
		$(call option,--profile,PROFILE) $(settings)

train-student: need-DATA need-EXPERIMENT $(INSTALLED) ## stage two: train the student of EXPERIMENT on DATA and CACHE
	$(POLAR_DISTILL) train $(call option,--data,DATA) $(call option,--experiment,EXPERIMENT) \
		$(call option,--cache,CACHE) $(call option,--teacher,TEACHER) $(call option,--run,RUN) \
		$(call option,--device,DEVICE) $(if $(filter-out 0 no false,$(RESUME)),--resume) $(settings)

sweep: need-DATA need-EXPERIMENTS $(INSTALLED) ## train EXPERIMENTS with SEEDS from one CACHE into RUNS; goes on where it stopped
	$(POLAR_DISTILL) sweep $(call option,--data,DATA) $(call option,--experiments,EXPERIMENTS) \
		$(call option,--seeds,SEEDS) $(call option,--cache,CACHE) $(call option,--teacher,TEACHER) \
		$(call option,--out,RUNS) $(call option,--jobs,JOBS) $(call option,--ray,RAY) \
		$(call option,--device,DEVICE) $(settings)

compare: need-RUNS $(INSTALLED) ## one page that compares RUNS; with DATA, pictures of SCAN by each student and the TEACHER
	$(POLAR_DISTILL) compare $(foreach folder,$(RUNS),$(call quote,$(folder))) \
		$(call option,--out,PAGE) $(call option,--data,DATA) $(if $(strip $(DATA)),$(call option,--teacher,TEACHER)) \
		$(foreach scan,$(SCAN),--scan $(call quote,$(scan))) $(call option,--device,DEVICE)

evaluate: need-DATA $(INSTALLED) ## IoU of each class and mIoU of the student in RUN (or WEIGHTS)
	$(POLAR_DISTILL) evaluate $(call option,--data,DATA) $(student) $(splits) \
		$(call option,--views,VIEWS) $(call option,--device,DEVICE)

evaluate-teacher: need-DATA need-TEACHER $(INSTALLED) ## the same of the TEACHER, with the grid of EXPERIMENT
	$(POLAR_DISTILL) evaluate $(call option,--data,DATA) $(call option,--teacher,TEACHER) \
		$(call option,--experiment,EXPERIMENT) $(splits) $(call option,--views,VIEWS) \
		$(call option,--device,DEVICE) $(settings)

predict: need-DATA need-OUT $(INSTALLED) ## write the student's labels of each scan to OUT, in the benchmark's layout
	$(POLAR_DISTILL) predict $(call option,--data,DATA) $(student) $(splits) \
		$(call option,--views,VIEWS) $(call option,--out,OUT) $(call option,--zip,ZIP) $(call option,--device,DEVICE)

render: need-DATA need-SCAN $(INSTALLED) ## draw SCAN from above: truth, student and, where TEACHER is set, the teacher
	$(POLAR_DISTILL) render $(call option,--data,DATA) $(student) $(call option,--teacher,TEACHER) \
		$(foreach scan,$(SCAN),--scan $(call quote,$(scan))) $(call option,--out,PICTURES) $(call option,--device,DEVICE)

export: need-SHIPPED $(INSTALLED) ## write the student of RUN to SHIPPED: weights, ONNX, model card; with CALIBRATE eight bits
	$(POLAR_DISTILL) export $(call quote,$(RUN)) $(call option,--to,SHIPPED) \
		$(if $(strip $(CALIBRATE)),--int8 $(call option,--calibrate,CALIBRATE))

latency: need-DATA $(INSTALLED) ## how long a scan of DATA takes the student in RUN on this CPU, by engine
	$(POLAR_DISTILL) latency $(call quote,$(RUN)) $(call option,--data,DATA) \
		$(if $(wildcard $(SHIPPED)/map.onnx),$(call option,--onnx,SHIPPED))

view: need-SCAN $(INSTALLED) ## show SCAN in 3D on a page, as the student in RUN sees it; files, or with DATA scans of it
	$(POLAR_DISTILL) view $(call quote,$(RUN)) $(foreach scan,$(SCAN),$(call quote,$(scan))) \
		$(call option,--data,DATA) $(call option,--teacher,TEACHER) $(call option,--device,DEVICE)

doctor: $(INSTALLED) ## check this machine, and DATA, TEACHER and CACHE where they are set
	@$(POLAR_DISTILL) doctor $(call option,--data,DATA) $(call option,--teacher,TEACHER) \
		$(call option,--cache,CACHE) $(call option,--config,CONFIG) $(call option,--dataset,DATASET)

new-dataset: need-DATA $(INSTALLED) ## look at files of your own in DATA and write the YAML file that describes them, DATASET
	@$(POLAR_DISTILL) new-dataset $(call quote,$(DATA)) $(call option,--out,DATASET)

class-frequencies: need-DATA need-DATASET $(INSTALLED) ## count the labels of DATA, and write their shares to DATASET
	@$(POLAR_DISTILL) class-frequencies $(call option,--data,DATA) $(call option,--dataset,DATASET) --write

bench: $(INSTALLED) ## print the benchmark tables of tests/benchmarks
	@for name in $(or $(BENCH),$(basename $(notdir $(wildcard tests/benchmarks/bench_*.py)))); do \
		echo "== $$name"; $(VENV_PYTHON) -m tests.benchmarks.$$name || exit 1; done

bench-gpu: $(INSTALLED) ## both stages on a GPU against budgets; the table of docs/gpu.md
	$(VENV_PYTHON) -m tests.benchmarks.bench_gpu $(call option,--device,DEVICE)

proof: $(INSTALLED) ## answer the questions of configs/proof/plan.yaml on simulated streets (hours; resumable)
	$(VENV_PYTHON) -m tests.benchmarks.proof

clean: ## remove .venv and what tools left behind; CACHE and runs/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis __pycache__ build *.egg-info
	find common configs stage1_dump_teacher stage2_train_student tests -name __pycache__ -type d -prune -exec rm -rf {} +

need-%:
	@$(if $(strip $($*)),,$(error $* is not set. Run it again with $*=..., `make help` says what it is))
