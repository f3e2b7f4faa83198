#include "bench/harness/session.hpp"

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <utility>

#include <waterweight/device_info.cuh>
#include <waterweight/version.hpp>

#include "bench/harness/check.hpp"
#include "bench/harness/commit.hpp"

namespace bench {
namespace {

bool any_failed = false;

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string rate_text(double per_second, double unit, const char* name) {
  if (per_second == 0) return "not measured";
  char text[64];
  std::snprintf(text, sizeof text, "%.1f %s", per_second / unit, name);
  return text;
}

void describe_device(const waterweight::device_info& device) {
  cudaDeviceProp properties = {};
  check(cudaGetDeviceProperties(&properties, 0), "asking for the device's properties");
  int driver = 0, runtime = 0;
  check(cudaDriverGetVersion(&driver), "asking for the driver's version");
  check(cudaRuntimeGetVersion(&runtime), "asking for the runtime's version");
  const char* forced = std::getenv("CUDA_FORCE_PTX_JIT");
  benchmark::AddCustomContext("gpu", properties.name);
  benchmark::AddCustomContext("compute_capability", std::to_string(device.compute_capability));
  benchmark::AddCustomContext("sm_count", std::to_string(device.sm_count));
  benchmark::AddCustomContext("l2_bytes", std::to_string(device.l2_bytes));
  benchmark::AddCustomContext("cuda_driver", version_text(driver));
  benchmark::AddCustomContext("cuda_runtime", version_text(runtime));
  benchmark::AddCustomContext("compiled_for", WATERWEIGHT_BENCH_ARCHITECTURES);
  benchmark::AddCustomContext("running_code", running_code());
  benchmark::AddCustomContext("CUDA_FORCE_PTX_JIT", forced != nullptr ? forced : "unset");
  benchmark::AddCustomContext("waterweight_version",
                              std::to_string(WATERWEIGHT_VERSION_MAJOR) + "." +
                                  std::to_string(WATERWEIGHT_VERSION_MINOR) + "." +
                                  std::to_string(WATERWEIGHT_VERSION_PATCH));
  benchmark::AddCustomContext("git_commit", commit());
}

void describe_roofs(const Roofs& roofs) {
  benchmark::AddCustomContext("read_roof", rate_text(roofs.read(), 1e9, "GB/s"));
  benchmark::AddCustomContext("read_roof_bulk_copies", rate_text(roofs.bulk_read, 1e9, "GB/s"));
  benchmark::AddCustomContext("read_roof_plain_loads", rate_text(roofs.plain_read, 1e9, "GB/s"));
  benchmark::AddCustomContext("copy_roof", rate_text(roofs.copy, 1e9, "GB/s"));
  benchmark::AddCustomContext("matrix_roof_cublas_fp16", rate_text(roofs.matrix, 1e12, "TFLOP/s"));
}

int run_on_device(const std::function<void(Session&)>& register_benchmarks) {
  Session session;
  check(waterweight::query_device(&session.device, 0), "querying the device");
  check(cudaStreamCreateWithFlags(&session.stream, cudaStreamNonBlocking), "creating a stream");
  Cublas cublas(session.stream);
  session.cublas = &cublas;
  session.roofs = measure_roofs(session.device, cublas, session.stream);
  describe_device(session.device);
  describe_roofs(session.roofs);
  register_benchmarks(session);
  const std::size_t matched = benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return matched == 0 || any_failed ? 1 : 0;
}

}  // namespace

void fail(benchmark::State& state, const std::string& message) {
  any_failed = true;
  state.SkipWithError(message.c_str());
}

void add_benchmark(const std::string& name, std::function<void(benchmark::State&)> body) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [body = std::move(body)](benchmark::State& state) {
                                 try {
                                   body(state);
                                 } catch (const std::exception& error) {
                                   fail(state, error.what());
                                 }
                               })
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

void report(benchmark::State& state, const Statistics& time, const Work& work, double memory_roof,
            double matrix_roof) {
  for ([[maybe_unused]] auto _ : state) state.SetIterationTime(time.median);
  const double bytes_per_s = work.bytes / time.median;
  state.counters["p05_us"] = 1e6 * time.p05;
  state.counters["p95_us"] = 1e6 * time.p95;
  state.counters["cv_percent"] = 100 * time.cv;
  state.counters["replays"] = time.samples;
  state.counters["bytes_per_s"] = bytes_per_s;
  state.counters["memory_roof_percent"] = 100 * bytes_per_s / memory_roof;
  if (work.flop == 0) return;
  const double flop_per_s = work.flop / time.median;
  state.counters["flop_per_s"] = flop_per_s;
  if (matrix_roof > 0) state.counters["matrix_roof_percent"] = 100 * flop_per_s / matrix_roof;
}

void report_counters_only(benchmark::State& state) {
  for ([[maybe_unused]] auto _ : state) state.SetIterationTime(0);
}

int run(int argc, char** argv, const std::function<void(Session&)>& register_benchmarks) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no CUDA device: nothing measured");
    return 0;
  }
  try {
    return run_on_device(register_benchmarks);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}

}  // namespace bench
