# Everything runs in a virtual environment of its own, .venv; PYTHON names the interpreter that creates it.
PYTHON ?= python3
BIN := .venv/bin
# Threads that wait sleep instead of spinning: a tenth slower on a quiet machine, eight times faster on one that has
# other work to do (docs/performance.md).
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint sanitize mutation test-gpu clean

demo: .venv/installed
	$(BIN)/python -m eugen_nerf.bench.demo --output outputs/make-demo

# Most of the suite runs on one thread, so two processes share it; a file's tests stay together, and with them what they
# train at their start.
WORKERS ?= 2
test: .venv/installed-dev lint sanitize
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests of the native CPU code once more, compiled to stop at any access out of bounds or undefined operation.
CXX ?= g++
SANITIZER_FLAGS := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
sanitize: .venv/installed-dev
	@command -v $(CXX) >/dev/null || { echo "make sanitize: no C++ compiler $(CXX), nothing to check"; exit 0; }; \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 EUGEN_CXXFLAGS="$(SANITIZER_FLAGS)" \
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/ops/test_cpu.py tests/test_optim.py

# Every bug of tests/emulator/mutations.py planted into the CUDA sources; make test tries a third of them.
mutation: .venv/installed-dev
	EUGEN_ALL_MUTATIONS=1 $(BIN)/python -m pytest -s tests/emulator/test_mutations.py

# What needs an NVIDIA GPU; skipped tests say why.
test-gpu: .venv/installed-dev
	$(BIN)/python -m pytest -m gpu

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
	    f"Python 3.10, 3.11 or 3.12 is needed, but {sys.executable} is {v[0]}.{v[1]}: run make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

# About 8 GB and a few minutes, nearly all of it torch.
.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/pip install --editable .
	touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml
	$(BIN)/pip install --editable '.[dev]'
	touch $@ .venv/installed

# What can be made again; trained runs (outputs, renders) stay.
clean:
	rm -rf viewer/node_modules .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
