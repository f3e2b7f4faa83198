#!/usr/bin/env bash
# Sourced by tests/run.sh and examples/pythia/demo.sh: finds what a build needs, installs what is
# missing, and says what kind of build this machine can make.

repository_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
build_dir="${BUILD_DIR:-$repository_root/build}"
export CMAKE_GENERATOR="${CMAKE_GENERATOR:-Ninja}" # an existing build directory keeps its own

has_header() {
  local directory
  for directory in /usr/include /usr/local/include "/usr/include/$(uname -m)-linux-gnu"; do
    [[ -e "$directory/$1" ]] && return 0
  done
  return 1
}

# Whether what a Debian package provides is here, wherever it came from.
is_present() {
  case "$1" in
    cmake) command -v cmake >/dev/null ;;
    ninja-build) command -v ninja >/dev/null ;;
    g++) command -v "${CXX:-g++}" >/dev/null ;;
    libgtest-dev) has_header gtest/gtest.h ;;
    libbenchmark-dev) has_header benchmark/benchmark.h ;;
    nlohmann-json3-dev) has_header nlohmann/json.hpp ;;
    libcli11-dev) has_header CLI/CLI.hpp ;;
    libutf8proc-dev) has_header utf8proc.h ;;
    python3) command -v python3 >/dev/null ;;
    *) return 1 ;;
  esac
}

# Installs those of the named Debian packages that are not present, or says how to and exits with 1.
install_missing() {
  local missing=() package as_root=()
  for package in "$@"; do
    is_present "$package" || missing+=("$package")
  done
  [[ ${#missing[@]} -eq 0 ]] && return 0

  local by_hand="sudo apt-get install -y ${missing[*]}"
  if ! command -v apt-get >/dev/null; then
    echo "Missing, and this is no Debian or Ubuntu: install what these packages hold there:" \
      "${missing[*]}" >&2
    exit 1
  fi
  if [[ $EUID -ne 0 ]]; then
    if ! sudo -n true 2>/dev/null; then
      printf 'Some packages are missing. Install them with this command, then run this again:\n  %s\n' \
        "$by_hand" >&2
      exit 1
    fi
    as_root=(sudo -n)
  fi
  echo "Installing: ${missing[*]}"
  if ! { "${as_root[@]}" apt-get update -qq &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
      --no-install-recommends "${missing[@]}"; }; then
    printf 'apt-get failed. Once it works again, this command installs what is missing:\n  %s\n' \
      "$by_hand" >&2
    exit 1
  fi
}

require_cmake() {
  local version
  version="$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')"
  if ! printf '3.24\n%s\n' "$version" | sort -V -C; then
    echo "CMake 3.24 or newer is needed, found $version. One way: pip install cmake" >&2
    exit 1
  fi
}

# Prints the two facts that decide what is built and what can run.
report_machine() {
  if ! command -v nvcc >/dev/null && [[ -x /usr/local/cuda/bin/nvcc ]]; then
    export PATH="$PATH:/usr/local/cuda/bin"
  fi
  if command -v "${CUDACXX:-nvcc}" >/dev/null; then
    echo "nvcc: $(command -v "${CUDACXX:-nvcc}")"
  else
    echo "nvcc: not found, so this is a host-only build without the CUDA parts"
  fi
  local gpus
  if gpus="$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null)" && [[ -n "$gpus" ]]; then
    echo "GPU: $(paste -sd, <<<"$gpus")"
  else
    echo "GPU: not found, so $1"
  fi
}
