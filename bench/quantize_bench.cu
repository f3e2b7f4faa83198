// quantize_per_channel against the copy roof: it reads 16- or 32-bit weights and writes INT8.
//
//   quantize/<fp16|bf16|fp32>/N:<channels>/K:<features>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <waterweight/quantize.cuh>
#include <waterweight/reference/quantize.hpp>

#include "bench/harness/chain.hpp"
#include "bench/harness/device_buffer.cuh"
#include "bench/harness/random.cuh"
#include "bench/harness/session.hpp"
#include "bench/harness/verify.hpp"

namespace {

using bench::Session;

struct Shape {
  int n, k;
};

constexpr std::array<Shape, 4> kShapes = {
    {{10240, 2560}, {17920, 2560}, {16384, 4096}, {50304, 2560}}};
constexpr int kSampledRows = 8;

/// Rotated inputs and outputs of one shape.
template <class T>
class QuantizeProblem {
 public:
  QuantizeProblem(const Session& session, Shape shape)
      : shape_(shape),
        w_(count(), bench::cold_copies(count() * (sizeof(T) + 1), session.device.l2_bytes)),
        q_(count(), w_.copies()),
        scale_(shape.n),
        bad_rows_(std::vector<int>{0}) {
    bench::fill(w_.all(), bench::normal_distribution{0.02f}, 1, session.stream);
  }

  int copies() const { return w_.copies(); }

  cudaError_t run(const Session& session, int i) const {
    const waterweight::matrix_view<const T> w{w_[i], shape_.n, shape_.k, shape_.k};
    const waterweight::mutable_int8_weight_view q{q_[i], scale_.data(), shape_.n, shape_.k,
                                                  shape_.k};
    return waterweight::quantize_per_channel(w, q, bad_rows_.data(), session.stream);
  }

  /// Throws unless sampled rows equal the reference bit for bit.
  void verify(const Session& session) {
    q_.all().poison(session.stream);
    scale_.poison(session.stream);
    bench::check(run(session, 0), "quantize_per_channel");
    bench::check(cudaStreamSynchronize(session.stream), "quantize_per_channel");
    for (const std::int64_t row : bench::sample_indices(shape_.n, kSampledRows, 5)) {
      const auto w = bench::download(w_[0] + row * shape_.k, shape_.k);
      std::vector<std::int8_t> want(w.size());
      float want_scale = 0;
      waterweight::reference::quantize_per_channel(
          waterweight::matrix_view<const T>{w.data(), 1, shape_.k, shape_.k},
          waterweight::mutable_int8_weight_view{want.data(), &want_scale, 1, shape_.k, shape_.k});
      const bool equal = want == bench::download(q_[0] + row * shape_.k, shape_.k) &&
                         want_scale == bench::download(scale_.data() + row, 1)[0];
      if (!equal) {
        throw std::runtime_error("wrong result: row " + std::to_string(row) +
                                 " differs from the reference");
      }
    }
    if (bench::download(bad_rows_.data(), 1)[0] != 0) {
      throw std::runtime_error("wrong result: finite rows were reported as bad");
    }
  }

 private:
  std::size_t count() const { return std::size_t(shape_.n) * shape_.k; }

  Shape shape_;
  bench::RotatedBuffer<T> w_;
  bench::RotatedBuffer<std::int8_t> q_;
  bench::DeviceBuffer<float> scale_;
  bench::DeviceBuffer<int> bad_rows_;
};

template <class T>
void add_series(const Session& session, const std::string& type) {
  for (const Shape shape : kShapes) {
    const std::string name =
        "quantize/" + type + "/N:" + std::to_string(shape.n) + "/K:" + std::to_string(shape.k);
    bench::add_benchmark(name, [&session, shape](auto& state) {
      QuantizeProblem<T> problem(session, shape);
      problem.verify(session);
      const bench::Chain chain = bench::rotating_chain(
          session.stream, problem.copies(), [&](int i) { return problem.run(session, i); });
      const double count = static_cast<double>(shape.n) * shape.k;
      const bench::Work work{count * (sizeof(T) + 1) + 4.0 * shape.n, 0};
      bench::report(state, bench::measure({&chain})[0], work, session.roofs.copy, 0);
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  return bench::run(argc, argv, [](Session& session) {
    add_series<__half>(session, "fp16");
    add_series<__nv_bfloat16>(session, "bf16");
    add_series<float>(session, "fp32");
  });
}
