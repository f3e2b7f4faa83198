#!/usr/bin/env bash
# Installs what is missing, builds the decoder and lets the bundled model write a little.
# BUILD_DIR names the build directory (default: build in the repository). Arguments go to
# `pythia generate`, for example: --prompt "The sea" --mode int8 --max-new-tokens 50
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../tests/setup.sh"

install_missing cmake ninja-build g++ nlohmann-json3-dev libcli11-dev libutf8proc-dev
require_cmake
report_machine "the decoder computes on the CPU"

# A directory that tests/run.sh configured keeps its tests; a fresh one is for the decoder alone.
options=()
[[ -e "$build_dir/CMakeCache.txt" ]] ||
  options=(-DWATERWEIGHT_BUILD_TESTS=OFF -DWATERWEIGHT_BUILD_BENCH=OFF)
cmake -S "$repository_root" -B "$build_dir" --log-level=NOTICE \
  -DWATERWEIGHT_BUILD_EXAMPLES=ON "${options[@]}"
cmake --build "$build_dir" --target pythia

# The model is the bundled one and the prompt this one, unless the arguments say otherwise.
prompt=(--prompt "It was a bright morning, and")
for argument in "$@"; do
  [[ "$argument" == --prompt || "$argument" == --prompt=* ]] && prompt=()
done
echo
exec "$build_dir/examples/pythia/pythia" generate "${prompt[@]}" "$@"
