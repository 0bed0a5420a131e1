# make demo, make test: from a fresh clone to a result. Each creates .venv, installs and builds what is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
# Built here rather than by pip in a place of its own, so that torch (gigabytes) is installed once.
INSTALL := $(PIP) install --quiet --no-build-isolation
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

# Regime "recycled": the C library keeps freed memory, so that kernels are compared and not page faults.
RECYCLED := SEGOPS_BENCH_REGIME=recycled MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
DEFAULT := SEGOPS_BENCH_REGIME=default
RESULTS := benchmarks/results
FUZZ := 10000
TSAN := 1000
BENCH := $(BIN)/python -m pytest benchmarks --ignore benchmarks/bench_models.py --benchmark-json
NETWORKS := u2net u2netp unet segnet drn_d_22 dilation8_camvid

.DEFAULT_GOAL := help
.PHONY: help demo test build dist docs bench bench-recycled bench-default bench-op bench-networks lint traffic sass mutants fuzz tsan export ladder gpu arm64 clean

help:
	@echo "make demo    train a small SegNet-Basic on scenes of digits (minutes) and time the operators here"
	@echo "make test    run all tests"
	@echo "make build   build the libraries into segops/"
	@echo "make dist    source distribution and wheel, tried in an empty environment with each of TORCHES (minutes)"
	@echo "make docs    build the documentation's site into build/site"
	@echo "make bench   time segops against PyTorch and its peers, in both allocator regimes"
	@echo "make bench-op OP=max_unpool  time one operator; its records take the place of the stored ones; REGIME=default"
	@echo "make bench-networks  time whole networks against PyTorch, ONNX Runtime and OpenVINO"
	@echo "make lint    ruff, clang-format and mypy"
	@echo "make traffic bytes that the CUDA kernels move and bank conflicts, counted on the host, against the floor"
	@echo "make sass    registers, spills and instructions of the CUDA and Triton kernels, against limits"
	@echo "make mutants plant bugs into the CUDA kernels: each must be caught (minutes)"
	@echo "make fuzz    random calls of every function and cases of kernels under sanitizers; FUZZ=10000 of each (hours)"
	@echo "make tsan    random calls of every function under ThreadSanitizer; TSAN=1000 of each (an hour)"
	@echo "make export  a network of every family through torch.export and ONNX, all through torch.compile (minutes)"
	@echo "make ladder  device code without a device, all that make test has a share of: see tests/ladder (long)"
	@echo "make gpu     on a GPU: all tests, compute-sanitizer and benchmarks, into one report folder"
	@echo "make arm64   compile the CPU kernels for arm64 and run them in an emulator"

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "setuptools>=77" pybind11 cmake ninja numpy torch torchvision
	touch $@

# Where no GPU is, the CUDA kernels are compiled for one architecture, which the tests look at, in a third of the time.
ARCHS := $(or $(SEGOPS_CUDA_ARCHS),$(if $(shell command -v nvidia-smi),80;90;100,90))

$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	SEGOPS_CUDA_ARCHS="$(ARCHS)" $(INSTALL) --editable .
	touch $@

$(VENV)/.demo: $(VENV)/.built
	$(INSTALL) --editable ".[demo]"
	touch $@

$(VENV)/.test: $(VENV)/.built
	$(INSTALL) --editable ".[test]"
	touch $@

$(VENV)/.lint: pyproject.toml $(VENV)/.torch
	$(PIP) install --quiet $$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['lint'])")
	touch $@

build: $(VENV)/.built

demo: $(VENV)/.demo
	$(BIN)/segops demo

# A worker for each core, up to 8: more would wait for the longest test. Units in the order of the files: tests/parallel.py.
test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadscope --no-loadscope-reorder

# A source distribution, a wheel made from it, and the tiny tests of that one wheel in an empty environment for each torch.
TORCHES := torch torch==2.13.0 torch==2.11.0
dist: $(VENV)/.torch
	$(PIP) install --quiet build
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m tests.dist dist/*.whl $(TORCHES)

docs: $(VENV)/.test
	$(BIN)/mkdocs build --strict

# Both regimes, one after the other, then the tables, README's too; BENCH_ARGS="-k bfloat16 --bench-laps 20" for a part of them.
bench: bench-recycled bench-default
	$(BIN)/python -m benchmarks.compare $(RESULTS)/recycled.json $(RESULTS)/default.json | tee $(RESULTS)/RESULTS.md
	$(BIN)/python -m benchmarks.readme

# Each in a process of its own, minutes for each; a peer that is not installed has no time.
bench-networks: $(VENV)/.test
	$(INSTALL) --editable ".[bench]"
	set -e; for name in $(NETWORKS); do $(RECYCLED) $(BIN)/python -m pytest benchmarks/bench_models.py -k "[$$name- or [$$name]" \
		--bench-laps 5 --bench-seconds 0 --benchmark-json $(RESULTS)/networks/$$name.json $(BENCH_ARGS); done
	$(BIN)/python -m benchmarks.compare $(RESULTS)/networks/*.json | tee $(RESULTS)/NETWORKS.md
	$(BIN)/python -m benchmarks.readme

bench-recycled: $(VENV)/.test
	$(RECYCLED) $(BENCH)=$(RESULTS)/recycled.json $(BENCH_ARGS)

# One file of benchmarks: its records take the place of the stored ones of the regime.
REGIME := recycled
bench-op: $(VENV)/.test
	$(if $(filter default,$(REGIME)),$(DEFAULT),$(RECYCLED)) $(BIN)/python -m pytest benchmarks/bench_$(OP).py --benchmark-json build/bench_$(OP).json $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.store build/bench_$(OP).json $(RESULTS)/$(REGIME).json
	$(BIN)/python -m benchmarks.compare $(RESULTS)/recycled.json $(RESULTS)/default.json > $(RESULTS)/RESULTS.md
	$(BIN)/python -m benchmarks.readme

bench-default: $(VENV)/.test
	$(DEFAULT) $(BENCH)=$(RESULTS)/default.json $(BENCH_ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files 'csrc/*' 'tests/csrc/*' | grep -E '\.(h|cpp|cu|cuh)$$' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

# The ladder of device code: tests/ladder/README.md.
traffic sass mutants: $(VENV)/.test
	$(BIN)/python -m tests.ladder.$@

fuzz: $(VENV)/.test
	$(BIN)/python -m tests.ladder.fuzz $(FUZZ)
	$(BIN)/python -m tests.faults.fuzz $(FUZZ) $(FUZZ_ARGS)

tsan: $(VENV)/.test
	$(BIN)/python -m tests.faults.fuzz $(TSAN) --variant tsan $(FUZZ_ARGS)

gpu: $(VENV)/.test
	$(BIN)/python -m tests.ladder.gpu $(GPU_ARGS)

export: $(VENV)/.test
	$(BIN)/python -m pytest tests/models/test_export.py tests/models/test_compile.py --every-export

# Of what device code proves without a device, the parts that `make test` has a share of.
ladder: $(VENV)/.test
	$(BIN)/python -m pytest tests/ladder tests/triton tests/ops -k "ladder or triton" --every-case \
		--numprocesses logical --maxprocesses 8 --dist loadscope --no-loadscope-reorder

# The CPU kernels cross-compiled and run in an emulator (Debian: g++-aarch64-linux-gnu, qemu-user).
arm64: $(VENV)/.test
	$(BIN)/python -m pytest tests/csrc/test_kernels.py -k arm64

clean:
	rm -rf build dist segops/lib segops/_native*.so $(VENV)/.built
