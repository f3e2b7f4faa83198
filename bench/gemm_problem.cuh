// The operands of one GEMM shape on the device, the calls that are timed, and their verification.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <waterweight/reference/gemm.hpp>
#include <waterweight/w8a16_gemm.cuh>

#include "bench/harness/chain.hpp"
#include "bench/harness/device_buffer.cuh"
#include "bench/harness/non_finite.cuh"
#include "bench/harness/random.cuh"
#include "bench/harness/session.hpp"
#include "bench/harness/verify.hpp"

namespace bench {

/// Which weights multiply the activations: INT8, or those of the activations' own type.
enum class WeightKind { int8, same };

/// x [max_m, k] and y [max_m, n] once; both kinds of weights [n, k] in as many copies as keep a
/// chain out of the L2. T: __half or __nv_bfloat16.
template <class T>
class GemmProblem {
 public:
  GemmProblem(const Session& session, int n, int k, int max_m)
      : n(n),
        k(k),
        x_(std::size_t(max_m) * k),
        y_(std::size_t(max_m) * n),
        scale_(n),
        w8_(weights(), cold_copies(weights(), session.device.l2_bytes)),
        w16_(weights(), cold_copies(weights() * sizeof(T), session.device.l2_bytes)),
        scratch_(waterweight::w8a16_gemm_workspace_bytes(max_m, n, k, session.device) + 1) {
    // Deviations that make the elements of y about 1; 73.6 is that of the INT8 values.
    const float unit = 1.0f / std::sqrt(static_cast<float>(k));
    fill(x_, normal_distribution{1.0f}, 1, session.stream);
    fill(w8_.all(), int8_distribution{}, 2, session.stream);
    fill(scale_, uniform_distribution{0.5f * unit / 73.6f, 1.5f * unit / 73.6f}, 3, session.stream);
    fill(w16_.all(), normal_distribution{unit}, 4, session.stream);
    check(cudaMemsetAsync(scratch_.data(), 0, scratch_.bytes(), session.stream), "zeroing scratch");
  }

  int copies(WeightKind kind) const {
    return kind == WeightKind::int8 ? w8_.copies() : w16_.copies();
  }

  /// y = x W^T for the first m rows of x, by this library, with copy i of the weights.
  cudaError_t run(const Session& session, WeightKind kind, int m, int i) const {
    const waterweight::matrix_view<const T> x{x_.data(), m, k, k};
    const waterweight::matrix_view<T> y{y_.data(), m, n, n};
    const waterweight::workspace ws{scratch_.data(), scratch_.bytes()};
    const waterweight::identity_epilogue epilogue;
    if (kind == WeightKind::int8) {
      const waterweight::int8_weight_view w{w8_[i], scale_.data(), n, k, k};
      return waterweight::w8a16_gemm(session.device, x, w, y, epilogue, ws, session.stream,
                                     waterweight::early_read::weights);
    }
    const waterweight::matrix_view<const T> w{w16_[i], n, k, k};
    return waterweight::w16a16_gemm(session.device, x, w, y, epilogue, ws, session.stream);
  }

  /// The same by cuBLAS with the 16-bit weights.
  cudaError_t run_cublas(const Session& session, int m, int i) const {
    return session.cublas->gemm(x_.data(), w16_[i], y_.data(), m, n, k);
  }

  /// Throws unless the last copy of the weights gives what the fp64 reference gives.
  void verify(const Session& session, WeightKind kind, int m) {
    const int copy = copies(kind) - 1;
    y_.poison(session.stream);
    check(run(session, kind, m, copy), "the GEMM");
    verify_y(session, kind, m, copy, kSumError);
  }

  /// cuBLAS may also round partial sums to T: those are as large as y, about 1.
  void verify_cublas(const Session& session, int m) {
    const int copy = copies(WeightKind::same) - 1;
    y_.poison(session.stream);
    check(run_cublas(session, m, copy), "cublasGemmEx");
    verify_y(session, WeightKind::same, m, copy,
             kSumError + 6 * kRounding<T> / std::sqrt(static_cast<double>(k)));
  }

  const int n, k;

 private:
  // Error of a sum in fp32 relative to the sum of magnitudes.
  static constexpr double kSumError = 3e-5;
  static constexpr int kSampledRows = 6, kSampledColumns = 12;

  std::size_t weights() const { return std::size_t(n) * k; }

  /// Compares sampled elements of y; every element must be finite.
  void verify_y(const Session& session, WeightKind kind, int m, int copy, double sum_error) const {
    expect_finite(y_.data(), std::size_t(m) * n, session.stream);
    const auto columns = sample_indices(n, kSampledColumns, 7);
    // The reference on the sampled channels, once more with magnitudes for the tolerance.
    const std::int64_t count = static_cast<std::int64_t>(columns.size());
    std::vector<double> w(count * k), magnitude(count * k), want(count), bound(count);
    for (std::int64_t c = 0; c < count; ++c) load_channel(kind, copy, columns[c], &w[c * k]);
    absolute(w, magnitude);
    for (const std::int64_t row : sample_indices(m, kSampledRows, m)) {
      const auto stored = download(x_.data() + row * k, k);
      const auto y = download(y_.data() + row * n, n);
      std::vector<double> x(stored.size()), x_magnitude(stored.size());
      for (std::size_t i = 0; i < stored.size(); ++i) x[i] = static_cast<float>(stored[i]);
      absolute(x, x_magnitude);
      multiply(x, w, want);
      multiply(x_magnitude, magnitude, bound);
      for (std::int64_t c = 0; c < count; ++c) {
        const double tolerance = kRounding<T> * std::abs(want[c]) + sum_error * bound[c];
        expect_near(want[c], static_cast<float>(y[columns[c]]), tolerance,
                    "y[" + std::to_string(row) + ", " + std::to_string(columns[c]) + "]");
      }
    }
  }

  /// One row of W in fp64, its scale included.
  void load_channel(WeightKind kind, int copy, std::int64_t channel, double* to) const {
    if (kind == WeightKind::int8) {
      const double scale = download(scale_.data() + channel, 1)[0];
      for (const std::int8_t q : download(w8_[copy] + channel * k, k)) *to++ = scale * q;
    } else {
      for (const T value : download(w16_[copy] + channel * k, k)) {
        *to++ = static_cast<float>(value);
      }
    }
  }

  static void absolute(const std::vector<double>& from, std::vector<double>& to) {
    for (std::size_t i = 0; i < from.size(); ++i) to[i] = std::abs(from[i]);
  }

  /// y[channels] = x[k] w[channels, k]^T
  void multiply(std::vector<double>& x, std::vector<double>& w, std::vector<double>& y) const {
    const std::int64_t count = static_cast<std::int64_t>(y.size());
    waterweight::reference::gemm<double>(
        waterweight::matrix_view<double>{x.data(), 1, k, k},
        waterweight::matrix_view<double>{w.data(), count, k, k},
        waterweight::matrix_view<double>{y.data(), 1, count, count},
        [](double sum, std::int64_t, std::int64_t) { return sum; });
  }

  DeviceBuffer<T> x_, y_;
  DeviceBuffer<float> scale_;
  RotatedBuffer<std::int8_t> w8_;
  RotatedBuffer<T> w16_;
  DeviceBuffer<char> scratch_;
};

}  // namespace bench
