#include "examples/pythia/model/host_gemm.hpp"

#include <algorithm>
#include <array>
#include <cstddef>

#include <waterweight/reference/epilogue.hpp>
#include "examples/pythia/model/host_kernel.hpp"

namespace pythia {
namespace {

// A block of rows and a stretch of k are small enough that x, the widened panel (32 KiB) and the
// sums stay in the caches of one core.
constexpr std::int64_t kBlockRows = 128;
constexpr std::int64_t kBlockDepth = 256;

// Waking the other threads costs about as much as this many multiply-adds.
constexpr std::int64_t kSerialWork = 1 << 20;

void finish_row(const PackedLinear& weights, Finish finish, std::int64_t n0, std::int64_t count,
                const float* sums, float* y) {
  using waterweight::reference::gelu_erf;
  using waterweight::reference::gelu_tanh;
  for (std::int64_t j = 0; j < count; ++j) {
    float value = sums[j];
    if (!weights.scale.empty()) value *= weights.scale[n0 + j];
    if (!weights.bias.empty()) value += weights.bias[n0 + j];
    switch (finish) {
      case Finish::store:
        y[j] = value;
        break;
      case Finish::gelu_erf:
        y[j] = gelu_erf(value);
        break;
      case Finish::gelu_tanh:
        y[j] = gelu_tanh(value);
        break;
      case Finish::add:
        y[j] += value;
        break;
    }
  }
}

/// Rows [m0, m0 + rows) of one panel's columns.
void multiply_block(const float* x, std::int64_t m0, std::int64_t rows, std::int64_t panel,
                    const PackedLinear& weights, float* y, Finish finish) {
  thread_local std::array<float, kBlockDepth * kPanel> widened;
  thread_local std::array<float, kBlockRows * kPanel> sums;
  const HostKernels& kernels = host_kernels();
  const auto width = static_cast<std::int64_t>(dtype_bytes(weights.type));
  const std::uint8_t* stored = weights.panels.data() + panel * weights.cols * kPanel * width;
  std::fill_n(sums.begin(), rows * kPanel, 0.0f);
  for (std::int64_t k0 = 0; k0 < weights.cols; k0 += kBlockDepth) {
    const std::int64_t depth = std::min(kBlockDepth, weights.cols - k0);
    kernels.widen(weights.type, stored + k0 * kPanel * width, depth * kPanel, widened.data());
    kernels.multiply(x + m0 * weights.cols + k0, weights.cols, rows, depth, widened.data(),
                     sums.data(), kPanel);
  }
  const std::int64_t n0 = panel * kPanel;
  const std::int64_t count = std::min<std::int64_t>(kPanel, weights.rows - n0);
  for (std::int64_t i = 0; i < rows; ++i) {
    finish_row(weights, finish, n0, count, sums.data() + i * kPanel,
               y + (m0 + i) * weights.rows + n0);
  }
}

}  // namespace

void host_gemm(ThreadPool& pool, const float* x, std::int64_t m, const PackedLinear& weights,
               float* y, Finish finish) {
  const std::int64_t panels = (weights.rows + kPanel - 1) / kPanel;
  const std::int64_t blocks = (m + kBlockRows - 1) / kBlockRows;
  const auto task = [&](std::int64_t index, int) {
    const std::int64_t m0 = index / panels * kBlockRows;
    multiply_block(x, m0, std::min(kBlockRows, m - m0), index % panels, weights, y, finish);
  };
  if (m * weights.rows * weights.cols < kSerialWork) {
    for (std::int64_t index = 0; index < blocks * panels; ++index) task(index, 0);
  } else {
    pool.parallel_for(blocks * panels, task);
  }
}

}  // namespace pythia
