# The front door. Each target works alone in a fresh clone on Debian 12: it installs what it misses, and only that.
#   make demo | test | examples | bench | asan | tsan | format | docs | clean

JOBS ?= $(shell nproc)
BUILD = cmake --build --preset
# A package that bootstrap.sh was asked to install must be found: nothing is left out in silence.
NEED = $(foreach p,$(1),-D CMAKE_REQUIRE_FIND_PACKAGE_$(p)=ON)

.DEFAULT_GOAL := help
.PHONY: help demo test examples bench bench-peers check-bits check-resident check-portable check-trace asan tsan format format-check docs clean

help:
	@echo 'make demo    train on handwritten digits, with and without recompute, and compare memory, time and gradients'
	@echo 'make test    build and run every test and check'
	@echo 'make examples   build every program of examples/ and the lecture, into build/release/examples/'
	@echo 'make bench   build and run the benchmarks'
	@echo 'make bench-peers   the same nets in PyTorch and here, in turns, with a table of time and memory (half an hour)'
	@echo 'make check-bits   the same bits in every model with every optimizer, strategy and number of threads (minutes)'
	@echo 'make check-resident   peak memory of whole processes against what was counted, on large models (minutes)'
	@echo 'make check-portable   the portable build: its tests with the kernels of either kind of CPU (minutes)'
	@echo 'make check-trace      profiles of three nets, as traces, loaded into speedscope (from npm) in headless Chromium'
	@echo 'make asan    the tests under AddressSanitizer and UBSan'
	@echo 'make tsan    the tests under ThreadSanitizer (clang)'
	@echo 'make format  rewrite the sources in the style of .clang-format'
	@echo 'make docs    write docs/ops.md from the declarations of the ops'
	@echo 'make clean   remove build/'

demo:
	scripts/bootstrap.sh build examples
	cmake --preset release $(call NEED,CLI11 nlohmann_json)
	$(BUILD) release -j $(JOBS) --target train_digits compare_checkpointing
	build/release/examples/train_digits
	build/release/examples/compare_checkpointing --model digits

test:
	scripts/bootstrap.sh build examples test data browser
	cmake --preset release $(call NEED,CLI11 nlohmann_json doctest)
	$(BUILD) release -j $(JOBS)
	ctest --preset release

examples:
	scripts/bootstrap.sh build examples
	cmake --preset release $(call NEED,CLI11 nlohmann_json)
	$(BUILD) release -j $(JOBS) --target examples

bench:
	scripts/bootstrap.sh build examples bench
	cmake --preset release $(call NEED,benchmark CLI11 nlohmann_json)
	$(BUILD) release -j $(JOBS) --target bench

# More options: bench/peers/compare.py --help
bench-peers:
	scripts/bootstrap.sh build examples bench peers
	cmake --preset release $(call NEED,benchmark CLI11 nlohmann_json)
	$(BUILD) release -j $(JOBS) --target bench_step bench_ops bench_heap_meter
	bench/peers/compare.py build/release/bench --json build/peers.json --markdown build/peers.md

check-bits:
	scripts/bootstrap.sh build test
	cmake --preset release $(call NEED,doctest)
	$(BUILD) release -j $(JOBS) --target rewind_tests_whole
	build/release/tests/rewind_tests_whole --no-skip --test-case='the same bits in every model with every optimizer*'

# The loader is told to overlook x86-64-v4 the second time.
check-portable:
	scripts/bootstrap.sh build test
	cmake --preset release -B build/portable -D REWIND_PORTABLE=ON $(call NEED,doctest)
	cmake --build build/portable -j $(JOBS) --target rewind_tests_core rewind_tests_autograd
	for t in core autograd; do build/portable/tests/rewind_tests_$$t && \
	  /lib64/ld-linux-x86-64.so.2 --glibc-hwcaps-mask x86-64-v3 build/portable/tests/rewind_tests_$$t || exit 1; done

check-resident:
	scripts/bootstrap.sh build examples python
	cmake --preset release $(call NEED,CLI11 nlohmann_json)
	$(BUILD) release -j $(JOBS) --target compare_checkpointing
	tests/whole/resident_test.py build/release/examples/compare_checkpointing --all

# Debian's npm cannot be installed beside a nodejs from elsewhere, which brings its own.
check-trace:
	scripts/bootstrap.sh build examples browser
	command -v npm >/dev/null || scripts/bootstrap.sh trace
	cmake --preset release $(call NEED,CLI11 nlohmann_json)
	$(BUILD) release -j $(JOBS) --target profile
	/usr/bin/python3 tests/profile/speedscope_test.py build/release/examples/profile build/release/speedscope --must

asan:
	scripts/bootstrap.sh build examples test data
	cmake --preset asan-ubsan $(call NEED,doctest)
	$(BUILD) asan-ubsan -j $(JOBS)
	ctest --preset asan-ubsan

tsan:
	scripts/bootstrap.sh build examples test data tsan
	cmake --preset tsan $(call NEED,doctest)
	$(BUILD) tsan -j $(JOBS)
	ctest --preset tsan

format:
	scripts/bootstrap.sh format
	scripts/format.sh

format-check:
	scripts/bootstrap.sh format
	scripts/format.sh --check

docs:
	scripts/bootstrap.sh build
	cmake --preset release
	$(BUILD) release -j $(JOBS) --target rewind_docs
	build/release/tools/rewind_docs docs/ops.md

clean:
	rm -rf build
