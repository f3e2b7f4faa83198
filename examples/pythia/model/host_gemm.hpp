// Y = finish(X W^T + bias) on the host: fp32 activations, weights as stored (16-bit, fp32 or INT8).
#pragma once

#include <cstdint>
#include <vector>

#include "examples/pythia/io/dtype.hpp"
#include "examples/pythia/model/thread_pool.hpp"

namespace pythia {

/// A linear's weights [rows = N, cols = K] in panels of kPanel output channels, [ceil(N /
/// kPanel)][K] [kPanel], zero beyond N: the order the kernels read.
struct PackedLinear {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  DType type = DType::f32;  ///< f16, bf16, f32 or i8
  std::vector<std::uint8_t> panels;
  std::vector<float> scale;  ///< [N] for i8, else empty
  std::vector<float> bias;   ///< [N], or empty for none
};

/// What happens to a sum once its scale and bias are in.
enum class Finish {
  store,      ///< y = sum
  gelu_erf,   ///< y = gelu(sum), exact
  gelu_tanh,  ///< y = gelu(sum), tanh form
  add,        ///< y += sum: the residual stream
};

/// x [m, K], y [m, N], both contiguous fp32. Every element is summed over ascending k by one
/// thread, so the result depends neither on the threads nor on the other rows.
void host_gemm(ThreadPool& pool, const float* x, std::int64_t m, const PackedLinear& weights,
               float* y, Finish finish);

}  // namespace pythia
