// The rows of a prompt that are still needed behind the last attention: those of its last tokens.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/launch.cuh>

#include "examples/pythia/model/cuda_state.hpp"

namespace pythia {

/// to[b] = from[rows[b]] of what a layer needs behind its attention. One block per row.
template <class T>
__global__ void take_rows_kernel(Activations<T> from, Activations<T> to, const std::int32_t* rows,
                                 int hidden) {
  waterweight::detail::follow_earlier_kernels();
  const std::int64_t source = static_cast<std::int64_t>(rows[blockIdx.x]) * hidden;
  const std::int64_t target = static_cast<std::int64_t>(blockIdx.x) * hidden;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
    to.residual[target + i] = from.residual[source + i];
    to.attention_out[target + i] = from.attention_out[source + i];
    to.mlp_in[target + i] = from.mlp_in[source + i];
  }
}

/// rows: [count] device memory. `to` must not overlap `from`.
template <class T>
cudaError_t take_rows(const Activations<T>& from, const Activations<T>& to,
                      const std::int32_t* rows, int count, int hidden, cudaStream_t stream) {
  constexpr int kThreads = 512;
  return waterweight::detail::launch_following(take_rows_kernel<T>, static_cast<unsigned>(count),
                                               kThreads, 0, stream, from, to, rows, hidden);
}

}  // namespace pythia
