// The token kernel that times itself (cuda_token_clock.cuh): compiled apart from the usual one, and
// for few models, because each takes seconds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "examples/pythia/model/engine.hpp"

namespace pythia {

template <class T>
struct TokenParameters;

/// Those of the largest model that bench's results are about, and of the bundled one.
constexpr bool has_timed_token_kernel(int head_dim, int hidden) {
  return (head_dim == 80 && hidden == 2560) || (head_dim == 64 && hidden == 256);
}

/// Shared memory that this form needs beside what the usual one does: the sums of its times.
constexpr std::size_t kTimedSharedBytes = 128;

/// As launch_token_kernel, for a model that has this form. p.times: not null.
template <class T>
cudaError_t launch_timed_token_kernel(const TokenParameters<T>& p, int head_dim, WeightType weights,
                                      int blocks, std::size_t shared_bytes, cudaStream_t stream);

}  // namespace pythia
