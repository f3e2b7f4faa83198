// One benchmark program: its device, its roofs, how a benchmark is registered, how it fails, and
// what it reports.
#pragma once

#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <functional>
#include <string>

#include <waterweight/types.hpp>

#include "bench/harness/cublas.hpp"
#include "bench/harness/roof.hpp"
#include "bench/harness/statistics.hpp"

namespace bench {

/// What every benchmark may use. Lives as long as the program.
struct Session {
  waterweight::device_info device;
  cudaStream_t stream = nullptr;
  Cublas* cublas = nullptr;  ///< never null; see Cublas::available()
  Roofs roofs;
};

/// The least that one operation must do, whatever the implementation.
struct Work {
  double bytes = 0;  ///< each input read once, each output written once
  double flop = 0;
};

/// Registers a benchmark whose body measures by itself (measure(), then report()). An exception
/// fails the benchmark, and with it the program.
void add_benchmark(const std::string& name, std::function<void(benchmark::State&)> body);

/// Marks the benchmark as failed, visibly, and makes the program exit with 1.
void fail(benchmark::State& state, const std::string& message);

/// Reports `time` as the benchmark's time (the median) and adds what follows from it: p05_us,
/// p95_us, cv_percent, replays, bytes_per_s, flop_per_s, and the percentages of `memory_roof` (in
/// bytes/s: the read or the copy roof) and of the matrix roof where it is known.
void report(benchmark::State& state, const Statistics& time, const Work& work, double memory_roof,
            double matrix_roof);

/// Reports a benchmark that only carries counters.
void report_counters_only(benchmark::State& state);

/// The main program: Google Benchmark's options, the context (GPU, driver, architectures, commit,
/// roofs), then what `register_benchmarks` adds. Returns the exit code: 0 too where there is no
/// device, after saying so.
int run(int argc, char** argv, const std::function<void(Session&)>& register_benchmarks);

}  // namespace bench
