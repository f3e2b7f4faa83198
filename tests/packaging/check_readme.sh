#!/usr/bin/env bash
# usage: check_readme.sh SOURCE_DIR VERSION [PYTHIA]
# What the README shows must be so: its usage example is the tested one, its version is the
# library's, the files it names exist, and the decoder knows every command and option in it.
set -euo pipefail
cd "$1"
version="$2" pythia="${3:-}"
status=0
fail() {
  echo "README.md: $1"
  status=1
}

example=examples/quickstart/quantize_and_gemm.cu
tested="$(sed -n '/^\/\/ readme-begin$/,/^\/\/ readme-end$/p' "$example" | sed '1d;$d')"
shown="$(sed -n '/^```cpp$/,/^```$/p' README.md | sed '/^```cpp$/d;/^```$/,$d')"
[[ -n "$tested" ]] || fail "$example has no region between readme-begin and readme-end"
if [[ "$shown" != "$tested" ]]; then
  fail "its first C++ example differs from $example:"
  diff <(echo "$tested") <(echo "$shown") || true
fi

grep -q "GIT_TAG v$version)" README.md || fail "the version in GIT_TAG is not v$version"
grep -q "find_package(waterweight ${version%.*} " README.md ||
  fail "the version in find_package is not ${version%.*}"

# Files: link targets, and paths in code.
while read -r path; do
  [[ -e "$path" ]] || fail "$path does not exist"
done < <(grep -oE '\]\([^)#:]+\)|\b(include|examples|bench|tests)/[A-Za-z0-9_./-]*[A-Za-z0-9_]' README.md |
  sed -E 's/^\]\(|\)$//g' | sort -u)

# Commands and options of the decoder.
if [[ -n "$pythia" ]]; then
  while read -r command; do
    help="$("$pythia" "$command" --help)" || fail "pythia $command --help fails"
    while read -r option; do
      grep -qE -- "(^|[ ,])$option([ ,=]|$)" <<<"$help" || fail "pythia $command has no $option"
    done < <(sed -nE "s/^(pythia|build\/.*\/pythia) $command (.*)/\2/p" README.md |
      grep -oE -- '--[A-Za-z0-9_-]+' | sort -u)
  done < <(sed -nE 's/^(pythia|build\/.*\/pythia) ([a-z]+) .*/\2/p' README.md | sort -u)
fi
exit "$status"
