#!/usr/bin/env bash
# Installs what is missing, builds the tests, benchmarks and examples, and runs the tests.
# BUILD_DIR names the build directory (default: build in the repository). Arguments go to ctest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install_missing cmake ninja-build g++ libgtest-dev libbenchmark-dev nlohmann-json3-dev \
  libcli11-dev libutf8proc-dev python3
require_cmake
report_machine "tests that need one are skipped"

cmake -S "$repository_root" -B "$build_dir" -DWATERWEIGHT_BUILD_TESTS=ON \
  -DWATERWEIGHT_BUILD_EXAMPLES=ON -DWATERWEIGHT_BUILD_BENCH=ON
cmake --build "$build_dir"

results="$build_dir/tests.xml"
status=0
ctest --test-dir "$build_dir" --output-on-failure --no-tests=error --output-junit "$results" \
  -j "${CTEST_PARALLEL_LEVEL:-$(nproc)}" "$@" || status=$?

count() { sed -n "s/.*[[:space:]]$1=\"\([0-9]*\)\".*/\1/p" "$results" | head -n 1; }
echo
echo "Of $(count tests) tests $(count failures) failed and $(count skipped) were skipped."
exit "$status"
