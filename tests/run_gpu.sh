#!/usr/bin/env bash
# usage: run_gpu.sh [native] [ptx] [memcheck] [racecheck]   (all four unless some are named)
# For a machine with a GPU and a tree that is already built. Runs
#   native     every test program and the quickstarts, on the code compiled for this GPU
#   ptx        those that use the GPU, on what the driver compiles from their PTX
#   memcheck   GPU tests of small shapes under compute-sanitizer memcheck
#   racecheck  the same under compute-sanitizer racecheck
# and exits with 1 on any failed test, sanitizer error, crash or exceeded time limit.
# BUILD_DIR: the build directory (default: build in the repository). LOG_DIR: where each program's
# output goes (default: gpu-logs in BUILD_DIR). TIME_LIMIT: seconds per process (default: 300).
# JOBS: processes at a time (default: 4). COMPUTE_SANITIZER: the tool, where it is not found.
set -uo pipefail
repository_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
build_dir="${BUILD_DIR:-$repository_root/build}"
log_dir="${LOG_DIR:-$build_dir/gpu-logs}"
time_limit="${TIME_LIMIT:-300}"
jobs="${JOBS:-4}"

# The tests of a program that a stage runs: all, unless it is named here; "-" stands for none. The
# sanitizers slow a kernel down up to a hundredfold: they see each kernel in one element type and
# where its code differs in a second one, on short sequences.
filter_of() {
  local gemm='GemmTest/0.*:GemmTest/2.SmallM*:GemmTest/2.LargeTiles*:GemmTest/4.SmallM*'
  gemm+=':GemmTest/4.LargeTiles*:GemmInPlaceTest/0.*:FixedPointGemvTest/1.*'
  gemm+=':WgmmaGemmTest/0.EveryTile*:WgmmaGemmTest/0.EveryNumber*:TiledGemmTest/0.EveryLength*'
  gemm+=':StreamGemmTest/0.Every*:StreamGemmTest/3.Every*:StreamGemmTest/2.Smallest*'
  gemm+=':StreamGemmTest/0.Slabs*'
  local pythia='PythiaKernels.*:CudaWeightsTest.*:CudaEngineTest.GreedyTokensAreThoseOf*'
  pythia+=':CudaEngineTest.H2oRunsPast*:CudaEngineTest.WindowsOf*'
  pythia+='-PythiaKernels.SamplingChooses*:CudaWeightsTest.RandomWeights*'
  case "$1:$2" in
    ptx:test_link) echo '*PtxUnit*' ;; # its other unit has no PTX
    ptx:test_pythia_cli | *check:test_pythia_cli) echo - ;; # computes on the CPU
    # Racecheck does not see that __syncwarp() orders what 31 lanes have read before the arrival of
    # the 32nd, and reports hazards between them; where each lane arrives it reports none.
    racecheck:test_device) echo '*-WeightRing.BringsEveryTileWholeAndInOrder' ;;
    *check:test_link) echo - ;; # asks for code that the GPU may lack: an error by intent
    memcheck:test_gemm) echo "$gemm:TiledGemmTest/0.TilesShared*" ;;
    racecheck:test_gemm) echo "$gemm" ;;
    memcheck:test_attention)
      echo 'PrefillTest/0.*:Fp16/DecodeTest/0.*:DecodePolicyTest.TheFused*:*ThroughAFewBlocks' ;;
    racecheck:test_attention)
      echo 'PrefillTest/0.*:Fp16/DecodeTest/0.*:*ThroughAFewBlocks-*.ManySlotsPerHead:*.FullAttention' ;;
    *check:test_h2o) echo 'SelectTest/0.*:AccumulateTest/0.*:EvictTest.*-EvictTest.RandomShapes' ;;
    *check:test_quantize) echo 'QuantizeTest/0.*:QuantizeTest/1.*' ;;
    *check:test_pythia_model) echo "$pythia" ;;
    *) echo '*' ;;
  esac
}

# The names of the tests that a program has of a pattern.
tests_of() { "$1" --gtest_filter="$2" --gtest_list_tests 2>/dev/null | grep '^  '; }

# How many processes share the tests of a program in a stage: one would take minutes with what the
# others have done in seconds. From PTX only one: each would have to compile it.
shards_of() {
  local most=25 tests
  case "$1" in
    ptx)
      echo 1
      return
      ;;
    *check) most=5 ;;
  esac
  tests="$(tests_of "$2" "$3" | wc -l)"
  echo "$((tests > most ? (tests + most - 1) / most : 1))"
}

# Programs that hold device code carry it in a section of this name.
uses_gpu() { grep -qaF .nv_fatbin "$1"; }

# A pattern that selects nothing is a mistake in filter_of.
check_filter() {
  local pattern selected=() rejected
  IFS=: read -ra selected <<<"${2%%-*}"
  rejected="${2#"${2%%-*}"}"
  IFS=: read -ra rejected <<<"${rejected#-}"
  for pattern in "${selected[@]}" "${rejected[@]}"; do
    (($(tests_of "$1" "$pattern" | wc -l) > 0)) ||
      echo "the filter $pattern selects no test"
  done
}

# run_program STAGE PROGRAM FILTER SHARD SHARDS: leaves NAME.SHARD.log, and NAME.SHARD.result: "passed
# failed skipped", then a line for each thing that is wrong besides failed tests. FILTER "": a
# quickstart.
run_program() {
  local stage="$1" program="$2" filter="$3" status=0 problems=() command=("$2")
  local log="$log_dir/$stage/$(basename "$program").$4.log"
  local shard=(env GTEST_SHARD_INDEX="$4" GTEST_TOTAL_SHARDS="$5")
  if [[ -n "$filter" ]]; then
    command+=(--gtest_filter="$filter")
    (($4 > 0)) || mapfile -t problems < <(check_filter "$program" "$filter")
  fi
  case "$stage" in
    ptx) command=(env CUDA_FORCE_PTX_JIT=1 "${command[@]}") ;;
    *check) command=("$sanitizer" --tool "$stage" --error-exitcode 99 "${command[@]}") ;;
  esac
  timeout --kill-after=10 "$time_limit" "${shard[@]}" "${command[@]}" >"$log" 2>&1 </dev/null || status=$?

  count() { sed -nE "s/^\[ +$1 +\] ([0-9]+) tests?[.,].*/\1/p" "$log" | tail -n 1; }
  local passed failed skipped
  passed="$(count PASSED)" failed="$(count FAILED)" skipped="$(count SKIPPED)"
  if [[ -z "$filter" ]]; then
    ((status == 0)) && passed=1
    ((status == 77)) && skipped=1 status=0
  fi
  if ((status == 124 || status == 137)); then
    problems+=("exceeded the time limit of $time_limit s")
  elif ((status != 0)); then
    problems+=("ended with exit code $status")
  elif ((${passed:-0} + ${skipped:-0} == 0)); then
    problems+=("ran no test")
  fi
  case "$stage" in
    memcheck) grep -q '= ERROR SUMMARY: 0 errors' "$log" || problems+=("is not clean") ;;
    racecheck)
      grep -q '= RACECHECK SUMMARY: 0 hazards' "$log" || problems+=("is not clean") ;;
  esac
  {
    echo "${passed:-0} ${failed:-0} ${skipped:-0}"
    ((${#problems[@]} == 0)) || printf '%s\n' "${problems[@]}"
  } >"${log%.log}.result"
}

# run_stage STAGE: appends to `summary`; fails when anything in it did.
run_stage() {
  local stage="$1" program filter shard shards programs=0 start=$SECONDS
  mkdir -p "$log_dir/$stage"
  rm -f "$log_dir/$stage"/*.{log,result}
  if [[ "$stage" == *check && -z "$sanitizer" ]]; then
    summary+=("$(printf '%-10s compute-sanitizer was not found' "$stage")")
    return 1
  fi
  for program in "${test_programs[@]}" "${quickstarts[@]}"; do
    [[ "$stage" == native ]] || uses_gpu "$program" || continue
    filter="$(filter_of "$stage" "$(basename "$program")")"
    [[ "$(basename "$program")" == quickstart_* ]] && filter=""
    [[ "$filter" == - ]] && continue
    ((programs += 1))
    shards=1
    [[ -n "$filter" ]] && shards="$(shards_of "$stage" "$program" "$filter")"
    echo "$stage: $(basename "$program")"
    for ((shard = 0; shard < shards; ++shard)); do
      while (($(jobs -rp | wc -l) >= jobs)); do wait -n; done
      run_program "$stage" "$program" "$filter" "$shard" "$shards" &
    done
  done
  wait

  local result counts passed=0 failed=0 skipped=0 troubles=()
  for result in "$log_dir/$stage"/*.result; do
    [[ -e "$result" ]] || continue
    read -ra counts <"$result"
    ((passed += counts[0], failed += counts[1], skipped += counts[2]))
    while read -r problem; do
      troubles+=("  $(basename "$result" .result) $problem: ${result%.result}.log")
    done < <(tail -n +2 "$result")
  done
  summary+=("$(printf '%-10s %9d %7d %7d %8d %7d s' \
    "$stage" "$programs" "$passed" "$failed" "$skipped" "$((SECONDS - start))")" "${troubles[@]}")
  ((programs > 0 && failed == 0 && ${#troubles[@]} == 0))
}

stages=("$@")
((${#stages[@]})) || stages=(native ptx memcheck racecheck)
for stage in "${stages[@]}"; do
  case "$stage" in
    native | ptx | memcheck | racecheck) ;;
    *)
      echo "unknown stage $stage: expected native, ptx, memcheck or racecheck" >&2
      exit 2
      ;;
  esac
done

shopt -s nullglob
test_programs=() quickstarts=()
for program in "$build_dir"/tests/test_* "$build_dir"/tests/link/test_*; do
  [[ -f "$program" && -x "$program" && "$program" != *.so* ]] && test_programs+=("$program")
done
for program in "$build_dir"/examples/quickstart/quickstart_*; do
  [[ -f "$program" && -x "$program" ]] && quickstarts+=("$program")
done
if ((${#test_programs[@]} == 0 || ${#quickstarts[@]} == 0)); then
  echo "$build_dir: expected a tree built with CUDA, found no test programs or no quickstarts" >&2
  exit 1
fi

# A quickstart says by its exit code that there is no GPU.
probe=0
timeout 120 "${quickstarts[0]}" >/dev/null 2>&1 || probe=$?
if ((probe == 77)); then
  echo "no usable GPU was found, so nothing here can run" >&2
  exit 1
fi

sanitizer="${COMPUTE_SANITIZER:-}"
for candidate in compute-sanitizer "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer"; do
  [[ -n "$sanitizer" ]] || sanitizer="$(command -v "$candidate")"
done

summary=() status=0
for stage in "${stages[@]}"; do
  run_stage "$stage" || status=1
done
printf '\n%-10s %9s %7s %7s %8s %9s\n' stage programs passed failed skipped time
printf '%s\n' "${summary[@]}"
((status == 0)) && echo "all clean" || echo "FAILED; the logs are in $log_dir"
exit "$status"
