// LayerNorm of fp32 rows into the 16-bit activation type.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <waterweight/detail/arch/convert.cuh>

#include "examples/pythia/model/cuda_reduce.cuh"

namespace pythia {

/// Weight, bias: [hidden] fp32; out: [rows, hidden]. out null: not wanted.
template <class T>
struct LayerNormOutput {
  const float* weight = nullptr;
  const float* bias = nullptr;
  T* out = nullptr;
};

template <class T>
__global__ void layernorm_kernel(const float* x, const std::int32_t* row_index, int hidden,
                                 float eps, LayerNormOutput<T> first, LayerNormOutput<T> second) {
  const std::int64_t row = row_index == nullptr ? blockIdx.x : row_index[blockIdx.x];
  const float* source = x + row * hidden;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) sum += source[i];
  const float mean = block_sum(sum) / static_cast<float>(hidden);
  float squares = 0.0f;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
    const float centred = source[i] - mean;
    squares += centred * centred;
  }
  const float variance = block_sum(squares) / static_cast<float>(hidden);
  const float scale = 1.0f / sqrtf(variance + eps);
  const std::int64_t out_row = static_cast<std::int64_t>(blockIdx.x) * hidden;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
    const float unit = (source[i] - mean) * scale;
    first.out[out_row + i] =
        waterweight::detail::from_float<T>(unit * first.weight[i] + first.bias[i]);
    if (second.out != nullptr) {
      second.out[out_row + i] =
          waterweight::detail::from_float<T>(unit * second.weight[i] + second.bias[i]);
    }
  }
}

/// Normalises `rows` rows of x [*, hidden] once and writes them through one or two pairs of
/// weights: the parallel residual needs both of the same input. row_index: [rows] rows of x to
/// take, or null for 0, 1, ... All device memory; x must not overlap the outputs.
template <class T>
cudaError_t layernorm(const float* x, const std::int32_t* row_index, int rows, int hidden,
                      float eps, LayerNormOutput<T> first, LayerNormOutput<T> second,
                      cudaStream_t stream) {
  constexpr int kThreads = 256;
  layernorm_kernel<<<rows, kThreads, 0, stream>>>(x, row_index, hidden, eps, first, second);
  return cudaGetLastError();
}

}  // namespace pythia
