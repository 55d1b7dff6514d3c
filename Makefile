# Every job of a developer. `make demo` and `make test` set up what they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv

# uv does not read pip's configuration: carry over what pip on this machine is told.
pip_says = $(shell $(PYTHON) -m pip config list 2>/dev/null | sed -n "s/^global\.$(1)='\(.*\)'$$/\1/p")
export UV_INDEX          ?= $(call pip_says,extra-index-url)
export UV_INDEX_STRATEGY ?= unsafe-best-match
PIP_CONSTRAINT_FILE      := $(call pip_says,constraint)
CONSTRAINTS              := $(if $(PIP_CONSTRAINT_FILE),-c $(PIP_CONSTRAINT_FILE))
INSTALL := $(UV) pip install -q --python $(VENV) $(CONSTRAINTS)

# Tests of a file share a process, and with it what they import, their fixtures, a SLURM cluster, a browser.
PYTEST_ARGS ?= -n auto --dist loadfile --no-loadscope-reorder
# There is a process a core: threads of their own only stand in each other's way.
test quick oldest: export OMP_NUM_THREADS := 1

# Without byte code every process compiles torch and transformers again: 9 s of each.
unexport PYTHONDONTWRITEBYTECODE

# What `make gpu-check` measures: any components with their options, as in `refseg doctor --help`.
CHECK ?= backbone=tiny_mllm backbone=tiny_dit

.PHONY: demo setup test quick oldest wheel skypilot lint types tables gpu-check clean

demo: $(VENV)/.user          ## install for use, then run, score and report the embedded default
	$(BIN)/refseg run

test: setup                  ## install for development, then run every test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

quick: setup                 ## the tests that take no time
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow"

# torch stays as it is: the packages that an old one brings are gigabytes.
oldest: setup                ## the models' tests on the oldest transformers, diffusers and accelerate allowed
	$(INSTALL) --target $(VENV)/oldest --no-deps --resolution lowest-direct \
	  $$(grep -oE '(transformers|diffusers|accelerate)>=[0-9.]+' pyproject.toml | sort -u)
	PYTHONPATH=$(VENV)/oldest $(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow" tests/backbones

wheel: setup                 ## the built wheel with its models' extra, in an environment and a folder of its own
	rm -rf $(VENV)/wheel
	$(UV) build -q --wheel --python $(BIN)/python -o $(VENV)/wheel .
	$(UV) venv -q --python $(BIN)/python $(VENV)/wheel/env
	$(UV) pip install -q --python $(VENV)/wheel/env $(CONSTRAINTS) "$$(echo $(VENV)/wheel/*.whl)[mllm]"
	cd $(VENV)/wheel && env/bin/refseg run limit.clips=1 limit.expressions=1 baselines=[]
	rm -rf $(VENV)/wheel

skypilot: $(UV)              ## docs/cluster/skypilot.yaml as SkyPilot's own loader takes it
	$(UV) venv -q --python $(BIN)/python $(VENV)/skypilot
	$(UV) pip install -q --python $(VENV)/skypilot $(CONSTRAINTS) 'skypilot>=0.14'
	HOME=$(VENV)/skypilot $(VENV)/skypilot/bin/python -c \
	  "import sky; print(sky.Task.from_yaml('docs/cluster/skypilot.yaml'))"
	rm -rf $(VENV)/skypilot

setup: $(VENV)/.dev          ## install for development

lint: setup                  ## style and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python tools/house.py

types: setup                 ## strict types
	$(BIN)/mypy

tables: setup                ## the generated pages and tables of docs/ and results/
	$(BIN)/python tools/make_tables.py

gpu-check: $(VENV)/.user     ## speed, memory and exactness here: make gpu-check CHECK="backbone=… backbone.path=…"
	$(BIN)/refseg doctor $(CHECK) -o doctor.json

$(UV):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv

$(VENV)/.user: pyproject.toml | $(UV)
	$(INSTALL) -e '.[all]'
	touch $@

# sam2's own build asks for a second torch unless it may use the one that is there.
$(VENV)/.dev: pyproject.toml | $(UV)
	$(INSTALL) -e '.[dev]' setuptools
	SAM2_BUILD_CUDA=0 $(INSTALL) --no-build-isolation --no-deps 'sam2>=1.1.0' iopath portalocker
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
