#!/usr/bin/env bash
# usage: check_symbols.sh NM OBJECT_FOR_80 OBJECT_FOR_90 SHARED_LIBRARY
# The two objects hold the same source compiled for different architectures. Their functions must
# differ in name, none may be strong, and a library made of them exports none.
set -euo pipefail
nm="$1" object_80="$2" object_90="$3" library="$4"
status=0

# expect_none WHAT: fails with the lines of stdin, if there are any.
expect_none() {
  local lines
  lines="$(cat)"
  [[ -z "$lines" ]] && return
  printf '%s:\n%s\n' "$1" "$lines" | c++filt
  status=1
}
external() { "$nm" --defined-only --extern-only "$@" | awk 'NF == 3 { print $3 }' | sort -u; }
pick() { grep -E "$1" || true; }

# check_object OBJECT OWN_TAG OTHER_TAG: the architecture's part of the namespace tells them apart.
check_object() {
  local count
  count="$(external "$1" | pick "$2" | wc -l)"
  if ((count < 3)); then
    echo "$1: $count symbols hold $2, so this test sees too little"
    status=1
  fi
  expect_none "$1 holds symbols of the other architecture" < <(external "$1" | pick "$3")
  expect_none "$1 holds strong symbols of the library" < <("$nm" --defined-only "$1" |
    awk '$2 ~ /^[TDBRCG]$/ { print $3 }' | pick '^_Z[A-Z]*N?K?11waterweight')
}
check_object "$object_80" sm800s sm900s
check_object "$object_90" sm900s sm800s

# Const members of the views mean the same for every architecture; nothing else may be shared.
expect_none "functions under one name in both objects" < <(
  comm -12 <(external "$object_80") <(external "$object_90") |
    pick '^_ZN11waterweight|^_ZNK11waterweight4v0_16detail|sm[89]00s')

# Nor do templates of the standard library about the library's types matter (_ZSt...): the runtime's
# cudaLaunchKernelEx calls std::forward, which the compiler inlines or not, as it likes.
expect_none "the shared library exports functions of the library" < <(
  external --dynamic "$library" | pick 'sm[89]00s' | grep -v '^_ZSt' || true)
expect_none "the shared library exports strong symbols besides the test's own" < <(
  "$nm" --dynamic --defined-only "$library" |
    awk '$2 ~ /^[TDBRCG]$/ && $3 !~ /9link_test|^_(init|fini|edata|end)$|^__bss_start$/ { print $3 }')
exit "$status"
