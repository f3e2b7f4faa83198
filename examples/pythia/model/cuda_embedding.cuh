// Token embedding: ids to rows of the fp32 residual stream.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/launch.cuh>

namespace pythia {

template <class T>
__global__ void embedding_kernel(const T* table, const std::int32_t* tokens, int hidden,
                                 float* residual) {
  waterweight::detail::follow_earlier_kernels();
  const std::int64_t row = blockIdx.x;
  const T* source = table + static_cast<std::int64_t>(tokens[row]) * hidden;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
    residual[row * hidden + i] = waterweight::detail::to_float(source[i]);
  }
}

/// residual[r] = table[tokens[r]] for `rows` rows of `hidden` elements. All device memory.
template <class T>
cudaError_t embed(const T* table, const std::int32_t* tokens, int rows, int hidden, float* residual,
                  cudaStream_t stream) {
  constexpr int kThreads = 256;
  return waterweight::detail::launch_following(embedding_kernel<T>, static_cast<unsigned>(rows),
                                               kThreads, 0, stream, table, tokens, hidden,
                                               residual);
}

}  // namespace pythia
