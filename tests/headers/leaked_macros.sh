#!/usr/bin/env bash
# usage: leaked_macros.sh HEADER_DIR COMPILER OPTION... SOURCE
# Fails, naming them, when macros that files under HEADER_DIR define outlive the source without the
# prefix WATERWEIGHT_. The options must make -E keep #define and #undef lines.
set -euo pipefail
header_dir="$1"
shift

# A line marker, # LINE "FILE" FLAGS, says which file the lines below come from.
"$@" -E -std=c++17 -I "$(dirname "$header_dir")" | awk -v dir="$header_dir/" '
  /^# [0-9]+ "/ {
    file = $0
    sub(/^# [0-9]+ "/, "", file)
    sub(/".*/, "", file)
    ours = index(file, dir) == 1
  }
  $1 == "#define" { name = $2; sub(/\(.*/, "", name); if (ours) { defined[name] = file; seen++ } }
  $1 == "#undef" { delete defined[$2] }
  END {
    if (!seen) { print "no macro definition under " dir " was seen: is -dD in effect?"; exit 1 }
    for (name in defined)
      if (name !~ /^WATERWEIGHT_/) { print defined[name] ": leaves the macro " name; leaks++ }
    exit leaks > 0
  }'
