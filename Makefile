# All targets run in the virtual environment .venv; PYTHON names the interpreter that creates it.
PYTHON ?= python3
BIN := .venv/bin
# Waiting threads sleep instead of spinning: a tenth slower on an idle machine, eight times faster on a busy one
# (docs/performance.md).
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint sanitize mutation test-gpu clean

demo: .venv/installed
	$(BIN)/python -m eugen_nerf.bench.demo --output outputs/make-demo

# Most of the suite is single-threaded, so two processes share it. The tests of a file run in the same process, so that
# they share the models trained for them. A process that crashes is not replaced: xdist 3.8 then waits forever for tests
# that have run already.
WORKERS ?= 2
test: .venv/installed-dev lint sanitize
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart=0

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Run the tests of the native CPU code again, compiled to stop at out-of-bounds accesses and undefined behavior.
CXX ?= g++
SANITIZER_FLAGS := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
sanitize: .venv/installed-dev
	@command -v $(CXX) >/dev/null || { echo "make sanitize: no C++ compiler $(CXX), nothing to check"; exit 0; }; \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 EUGEN_CXXFLAGS="$(SANITIZER_FLAGS)" \
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/ops/test_cpu.py tests/ops/test_factor_products.py \
	    tests/test_optim.py

# Plant every bug of tests/emulator/mutations.py into the CUDA sources; make test tries a third of them.
mutation: .venv/installed-dev
	EUGEN_ALL_MUTATIONS=1 $(BIN)/python -m pytest -s tests/emulator/test_mutations.py

# The tests that need an NVIDIA GPU; skipped tests give the reason.
test-gpu: .venv/installed-dev
	$(BIN)/python -m pytest -m gpu

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
	    f"Python 3.10, 3.11 or 3.12 is needed, but {sys.executable} is {v[0]}.{v[1]}: run make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

# pip compiles a C library for nerfstudio's viewer. Where there is no C compiler, zig does, which pip installs.
C_COMPILER := $(shell command -v gcc || command -v clang || command -v cc)
ZIG = "$$($(BIN)/python -c 'import ziglang; print(*ziglang.__path__)')/zig cc"
PIP_INSTALL = CC=$${CC:-$(or $(C_COMPILER),$(ZIG))} $(BIN)/pip install
.venv/compiler: .venv/bin/python
	$(if $(C_COMPILER),,$(BIN)/pip install --quiet ziglang)
	touch $@

# About 8 GB and a few minutes, nearly all of it torch.
.venv/installed: .venv/compiler pyproject.toml
	$(PIP_INSTALL) --editable .
	touch $@

.venv/installed-dev: .venv/compiler pyproject.toml
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@ .venv/installed

# Remove everything that can be rebuilt; trained runs (outputs, renders) are kept.
clean:
	rm -rf viewer/node_modules .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
