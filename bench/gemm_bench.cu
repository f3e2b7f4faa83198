// w8a16_gemm and w16a16_gemm against cuBLAS with 16-bit weights, from one token to a long prompt.
//
//   gemm/<w8a16|w16a16>/<fp16|bf16>/M:<tokens>/N:<channels>/K:<features>[/warm]
//   gemm/summary/<w8a16|w16a16>/<fp16|bf16>/M:<tokens>      geometric means over the shapes
#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bench/gemm_problem.cuh"

namespace {

using bench::Chain;
using bench::Session;
using bench::WeightKind;

struct Shape {
  int n, k;
};

// What Pythia-2.8B multiplies by, then three shapes of larger models.
constexpr std::array<Shape, 9> kShapes = {{{7680, 2560},
                                           {2560, 2560},
                                           {10240, 2560},
                                           {2560, 10240},
                                           {17920, 2560},
                                           {50304, 2560},
                                           {4096, 4096},
                                           {16384, 4096},
                                           {4096, 16384}}};
constexpr std::size_t kPythiaShapes = 6;
constexpr std::array<int, 13> kTokens = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
constexpr std::array<int, 3> kWarmTokens = {1, 16, 64};

/// time of cuBLAS / time of ours, by series ("w8a16/fp16/M:16") and shape index.
using Ratios = std::map<std::string, std::map<std::size_t, double>>;

const char* name_of(WeightKind kind) { return kind == WeightKind::int8 ? "w8a16" : "w16a16"; }

template <class T>
const char* name_of() {
  return std::is_same_v<T, __half> ? "fp16" : "bf16";
}

/// The operands of the shape in hand: benchmarks run shape by shape, so one at a time is kept.
template <class T>
bench::GemmProblem<T>& problem_of(const Session& session, Shape shape) {
  static std::unique_ptr<bench::GemmProblem<T>> current;
  if (current == nullptr || current->n != shape.n || current->k != shape.k) {
    current.reset();
    current = std::make_unique<bench::GemmProblem<T>>(session, shape.n, shape.k, kTokens.back());
  }
  return *current;
}

bench::Work least_work(WeightKind kind, std::size_t element_bytes, int m, Shape shape) {
  const double n = shape.n, k = shape.k;
  const double weights = kind == WeightKind::int8 ? n * k + 4 * n : n * k * element_bytes;
  return {weights + element_bytes * m * (n + k), 2.0 * m * n * k};
}

/// Times the chains, for m tokens. Products of many tokens draw so much power that the card lowers
/// its clock, which the first ones of few tokens behind them must not pay for.
std::vector<bench::Statistics> measure(const std::vector<const Chain*>& chains, int m) {
  static int before = 0;
  if (m < before) bench::settle(chains);
  before = m;
  return bench::measure(chains);
}

/// Ours and, where it is there, cuBLAS in turn. Returns the ratio of their times, 0 without cuBLAS.
template <class T>
double compare(benchmark::State& state, const Session& session, WeightKind kind, int m, Shape shape,
               bool warm) {
  auto& problem = problem_of<T>(session, shape);
  problem.verify(session, kind, m);
  const int copies = warm ? 1 : problem.copies(kind);
  const Chain ours = bench::rotating_chain(
      session.stream, copies, [&](int i) { return problem.run(session, kind, m, warm ? 0 : i); });
  const bench::Work work = least_work(kind, sizeof(T), m, shape);
  const double weight_bytes =
      static_cast<double>(shape.n) * shape.k * (kind == WeightKind::int8 ? 1 : sizeof(T));
  const auto finish = [&](const bench::Statistics& time) {
    bench::report(state, time, work, session.roofs.read(), session.roofs.matrix);
    state.counters["weight_bytes_per_s"] = weight_bytes / time.median;
  };
  if (!bench::Cublas::available()) {
    finish(measure({&ours}, m)[0]);
    return 0;
  }
  problem.verify_cublas(session, m);
  const int cublas_copies = warm ? 1 : problem.copies(WeightKind::same);
  const Chain theirs = bench::rotating_chain(session.stream, cublas_copies, [&](int i) {
    return problem.run_cublas(session, m, warm ? 0 : i);
  });
  const auto times = measure({&ours, &theirs}, m);
  finish(times[0]);
  const double ratio = times[1].median / times[0].median;
  state.counters["cublas_us"] = 1e6 * times[1].median;
  state.counters["cublas_p05_us"] = 1e6 * times[1].p05;
  state.counters["cublas_p95_us"] = 1e6 * times[1].p95;
  state.counters["ratio"] = ratio;
  return ratio;
}

template <class T>
void add_series(const Session& session, Ratios& ratios) {
  for (std::size_t s = 0; s < kShapes.size(); ++s) {
    const Shape shape = kShapes[s];
    const std::string size = "/N:" + std::to_string(shape.n) + "/K:" + std::to_string(shape.k);
    for (const WeightKind kind : {WeightKind::int8, WeightKind::same}) {
      const std::string type = std::string(name_of(kind)) + "/" + name_of<T>();
      for (const int m : kTokens) {
        const std::string series = type + "/M:" + std::to_string(m);
        bench::add_benchmark(
            "gemm/" + series + size, [&session, &ratios, series, kind, m, shape, s](auto& state) {
              const double ratio = compare<T>(state, session, kind, m, shape, false);
              if (ratio > 0) ratios[series][s] = ratio;
            });
      }
      if (kind != WeightKind::int8) continue;
      for (const int m : kWarmTokens) {
        bench::add_benchmark("gemm/" + type + "/M:" + std::to_string(m) + size + "/warm",
                             [&session, kind, m, shape](auto& state) {
                               compare<T>(state, session, kind, m, shape, true);
                             });
      }
    }
  }
}

/// Geometric means of the ratios that this run measured; of nothing, nothing.
void summarise_series(benchmark::State& state, const std::map<std::size_t, double>& ratios) {
  bench::report_counters_only(state);
  double logs[2] = {};
  int counts[2] = {};
  double worst = 0;
  for (const auto& [shape, ratio] : ratios) {
    logs[shape >= kPythiaShapes] += std::log(ratio);
    ++counts[shape >= kPythiaShapes];
    worst = worst == 0 || ratio < worst ? ratio : worst;
  }
  state.counters["shapes"] = counts[0] + counts[1];
  if (ratios.empty()) return;
  if (counts[0] > 0) state.counters["geomean_pythia"] = std::exp(logs[0] / counts[0]);
  state.counters["geomean_all"] = std::exp((logs[0] + logs[1]) / (counts[0] + counts[1]));
  state.counters["worst"] = worst;
}

}  // namespace

int main(int argc, char** argv) {
  Ratios ratios;
  return bench::run(argc, argv, [&](Session& session) {
    add_series<__half>(session, ratios);
    add_series<__nv_bfloat16>(session, ratios);
    if (!bench::Cublas::available()) return;
    for (const char* type : {"w8a16/fp16", "w8a16/bf16", "w16a16/fp16", "w16a16/bf16"}) {
      for (const int m : kTokens) {
        const std::string series = std::string(type) + "/M:" + std::to_string(m);
        bench::add_benchmark("gemm/summary/" + series, [&ratios, series](auto& state) {
          summarise_series(state, ratios[series]);
        });
      }
    }
  });
}
