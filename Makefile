# Each target makes its own virtual environment and installs what it needs.
PYTHON ?= python3
DEMO_VENV := .venv-demo
TEST_VENV := .venv-test
DEMO_OUT := demo-out
OLDEST_VERSION := 1.24.4
OLDEST := .onnxruntime-$(OLDEST_VERSION)
QNN_VERSION := 2.7.0
QNN := .onnxruntime-qnn-$(QNN_VERSION)
NPU_TESTS := tests/export/npu tests/runtime/npu tests/mobile_bridge tests/hardware/test_compile_cost.py \
	tests/cli/test_npu_command.py
ifeq ($(OS),Windows_NT)
BIN := Scripts
else
BIN := bin
endif
# The versions that the tests run with. They bind what is installed, and install nothing that is not asked for: torch may
# be its CPU build, which needs no CUDA packages.
LOCK := requirements-dev.lock

NATIVE_SOURCES := $(wildcard $(foreach name,* */* */*/*,runtime/native/$(name).cc runtime/native/$(name).h) \
	benchmarks/kernels/*.cc benchmarks/kernels/*.h)

.PHONY: demo test test-oldest-runtime test-oldest-python test-npu test-npu-long npu-full-model test-arm64 test-windows lint lint-python
.PHONY: lint-native hooks lock wheel clean sample

demo: $(DEMO_VENV)/installed
	rm -rf $(DEMO_OUT)
	$(DEMO_VENV)/$(BIN)/lfm-onnx export samples/tiny_lfm -o $(DEMO_OUT)
	$(DEMO_VENV)/$(BIN)/lfm-onnx parity $(DEMO_OUT) --reference samples/tiny_lfm --tasks samples/tiny_lfm/tasks.jsonl
	$(DEMO_VENV)/$(BIN)/lfm-onnx generate $(DEMO_OUT) -p "How much is 34 + 58?"

test: $(TEST_VENV)/installed tests/clients/node_modules
	$(TEST_VENV)/$(BIN)/python -m pytest -q -n 2 --dist loadscope

# What runs a graph, once more on the oldest supported ONNX Runtime: that of Windows ML.
test-oldest-runtime: $(TEST_VENV)/installed $(OLDEST)/onnxruntime/__init__.py
	PYTHONPATH=$(OLDEST) $(TEST_VENV)/$(BIN)/python -c \
		"import onnxruntime as ort; assert ort.__version__ == '$(OLDEST_VERSION)', ort.__version__"
	PYTHONPATH=$(OLDEST) $(TEST_VENV)/$(BIN)/python -m pytest -q -n 2 --dist loadscope \
		tests/runtime/native/test_native_ops.py tests/runtime/native/test_native_moe.py \
		tests/runtime/native/test_native_attention.py tests/runtime/native/test_native_library.py \
		tests/export/test_quantized_ops.py tests/export/test_custom_ops.py tests/export/test_export_quantized.py

# Python 3.10 has ONNX Runtime up to 1.23 and transformers up to 5.20: what is the same with these.
test-oldest-python: $(TEST_VENV)/installed
	$(TEST_VENV)/$(BIN)/python -m pytest -q -n 2 --dist loadscope -k "not npu and not renders_as_in_transformers" \
		tests/checkpoint tests/artifact tests/export/test_export_graph.py tests/export/test_custom_ops.py \
		tests/export/test_export_quantized.py tests/export/test_export_parity.py tests/runtime/test_generate.py \
		tests/runtime/native/test_native_ops.py

# What is compiled for Qualcomm's NPU, on the compiler and the emulator that the package of its provider holds. It lies
# beside the environment: `make test` is the same with and without it.
test-npu: $(TEST_VENV)/installed $(QNN)/onnxruntime_qnn/__init__.py
	PYTHONPATH=$(CURDIR)/$(QNN) $(TEST_VENV)/$(BIN)/python -c \
		"from lfm_onnx.runtime.npu.provider import versions; print(versions())"
	PYTHONPATH=$(CURDIR)/$(QNN) $(TEST_VENV)/$(BIN)/python -m pytest -q -n 2 $(NPU_TESTS)

# Those of them that take minutes.
test-npu-long: $(TEST_VENV)/installed $(QNN)/onnxruntime_qnn/__init__.py
	PYTHONPATH=$(CURDIR)/$(QNN) $(TEST_VENV)/$(BIN)/python -m pytest -q -m long $(NPU_TESTS)

# All of LFM2.5-8B-A1B's shape exported and compiled, in FOLDER, which is kept: an hour or two, 24 GB of memory and 40 GB
# of disk. CHECKPOINT=folder takes real weights instead of random ones.
npu-full-model: $(TEST_VENV)/installed $(QNN)/onnxruntime_qnn/__init__.py
	CHECKPOINT="$(CHECKPOINT)" FOLDER="$(or $(FOLDER),build/npu-full-model)" PYTHONPATH=$(CURDIR)/$(QNN) \
		$(TEST_VENV)/$(BIN)/python -m pytest -q -s -x -m full_model tests/export/npu/test_npu_full_model.py

# The native library on other machines: under qemu and under wine. As root they install what is missing.
test-arm64: $(TEST_VENV)/installed
	PYTHON=$(TEST_VENV)/$(BIN)/python tests/runtime/native/targets/arm64.sh

test-windows: $(TEST_VENV)/installed
	PYTHON=$(TEST_VENV)/$(BIN)/python tests/runtime/native/targets/windows.sh

lint: lint-python lint-native

lint-python: $(TEST_VENV)/installed
	$(TEST_VENV)/$(BIN)/ruff check .
	$(TEST_VENV)/$(BIN)/ruff format --check .
	rm -rf .lint && mkdir -p .lint && ln -s .. .lint/lfm_onnx
	MYPYPATH=.lint $(TEST_VENV)/$(BIN)/mypy -p lfm_onnx
	$(TEST_VENV)/$(BIN)/mypy --config-file tests/mypy.ini tests

lint-native: build/native-linted

# Again where a source has changed since.
build/native-linted: $(TEST_VENV)/installed $(NATIVE_SOURCES) .clang-format .clang-tidy \
		runtime/native/compute/isa_sources.txt runtime/native/lint.sh
	BIN=$(CURDIR)/$(TEST_VENV)/$(BIN) runtime/native/lint.sh
	mkdir -p build && touch $@

# The linters before each commit, on what it touches.
hooks: $(TEST_VENV)/installed
	$(TEST_VENV)/$(BIN)/pre-commit install

# The wheel of this platform in dist/; it serves every Python.
wheel: $(DEMO_VENV)/installed
	LFM_ONNX_BUILD_NATIVE=1 $(DEMO_VENV)/$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps -w dist .

# Newer versions for the tests: those that are there now.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/$(BIN)/python -m pip install -q --disable-pip-version-check uv
	build/lock/$(BIN)/uv pip compile -q --universal --python-version 3.10 --upgrade --no-header --no-annotate \
		--no-emit-index-url --extra dev pyproject.toml -o $(LOCK)

# Retrains samples/tiny_lfm from its seed.
sample: $(TEST_VENV)/installed
	$(TEST_VENV)/$(BIN)/python samples/train_tiny.py

$(DEMO_VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	touch $@

$(TEST_VENV)/installed: pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(TEST_VENV)
	$(TEST_VENV)/$(BIN)/python -m pip install -q --disable-pip-version-check -c $(LOCK) -e ".[dev]"
	touch $@

$(OLDEST)/onnxruntime/__init__.py: $(TEST_VENV)/installed
	$(TEST_VENV)/$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(OLDEST) \
		onnxruntime==$(OLDEST_VERSION)

$(QNN)/onnxruntime_qnn/__init__.py: $(TEST_VENV)/installed
	$(TEST_VENV)/$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(QNN) \
		onnxruntime-qnn==$(QNN_VERSION)

# The JavaScript client's tests need Node; without npm they are skipped.
tests/clients/node_modules: tests/clients/package.json
	if command -v npm >/dev/null; then npm install --prefix tests/clients --ignore-scripts --no-audit --no-fund; fi
	mkdir -p $@ && touch $@

clean:
	rm -rf $(DEMO_VENV) $(TEST_VENV) $(DEMO_OUT) $(OLDEST) $(QNN) .lint build *.egg-info tests/clients/node_modules
