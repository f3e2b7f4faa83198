// The inner loops of the host path, compiled for several instruction sets and chosen once at run
// time.
#pragma once

#include <cstdint>
#include <vector>

#include "examples/pythia/io/dtype.hpp"

namespace pythia {

/// Columns of Y that one panel of weights gives: the panel is [k][kPanel], so that neighbouring
/// columns fill a vector register.
constexpr int kPanel = 32;

struct HostKernels {
  const char* name;  ///< of the instruction set

  /// y[i][j] += sum over k of x[i][k] * panel[k][j] for i < rows, j < kPanel; k ascends. Every
  /// element is summed in the same order whatever `rows` is.
  void (*multiply)(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k,
                   const float* panel, float* y, std::int64_t ldy);

  /// Widens `count` (a multiple of kPanel) stored elements to fp32; f16, bf16, f32 or i8.
  void (*widen)(DType type, const void* stored, std::int64_t count, float* out);
};

/// Every set of kernels this processor runs, the best last.
const std::vector<const HostKernels*>& supported_host_kernels();

/// The best of them.
const HostKernels& host_kernels();

}  // namespace pythia
