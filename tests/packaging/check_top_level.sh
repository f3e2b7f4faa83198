#!/usr/bin/env bash
# usage: check_top_level.sh SOURCE_DIR BUILD_DIR
# Fails when the top of the tree holds anything but what belongs there. Dot files and what
# .gitignore names may lie around.
set -euo pipefail
cd "$1"
build_dir="$2"
status=0
for entry in *; do
  case "$entry" in
    include | examples | bench | tests) ;;
    CMakeLists.txt | CMakePresets.json | LICENSE | README.md) ;;
    build* | compile_commands.json) ;;
    *)
      [[ "$entry" -ef "$build_dir" ]] && continue
      echo "$entry does not belong at the top of the tree"
      status=1
      ;;
  esac
done
exit "$status"
