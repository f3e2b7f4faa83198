// LayerNorm of fp32 rows into the 16-bit activation type.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/launch.cuh>

#include "examples/pythia/model/cuda_reduce.cuh"

namespace pythia {

/// Weight, bias: [hidden] fp32; out: [rows, hidden]. out null: not wanted.
template <class T>
struct LayerNormOutput {
  const float* weight = nullptr;
  const float* bias = nullptr;
  T* out = nullptr;
};

constexpr int kLayerNormThreads = 256;

/// This thread's weights and biases of one output, and what it makes of them.
template <class T, int E>
class LayerNormColumns {
 public:
  __device__ LayerNormColumns(const LayerNormOutput<T>& output, int hidden) : out_(output.out) {
    if (out_ == nullptr) return;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const int i = static_cast<int>(threadIdx.x) + j * kLayerNormThreads;
      weight_[j] = i < hidden ? output.weight[i] : 0.0f;
      bias_[j] = i < hidden ? output.bias[i] : 0.0f;
    }
  }

  __device__ void store(const float (&centred)[E], float scale, std::int64_t row,
                        int hidden) const {
    if (out_ == nullptr) return;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const int i = static_cast<int>(threadIdx.x) + j * kLayerNormThreads;
      if (i >= hidden) break;
      const float unit = centred[j] * scale;
      out_[row * hidden + i] = waterweight::detail::from_float<T>(unit * weight_[j] + bias_[j]);
    }
  }

 private:
  T* out_;
  float weight_[E], bias_[E];
};

/// A block takes rows in turn and has a row in registers, E elements a thread: E * 256 >= hidden.
/// Weights are read once per block, before earlier kernels have ended, and the next row is under
/// way while this one is summed up.
template <class T, int E>
__global__ void __launch_bounds__(kLayerNormThreads, E <= 10 ? 2 : 1)
    layernorm_kernel(float* x, const float* addend, int rows, int hidden, float eps,
                     LayerNormOutput<T> first, LayerNormOutput<T> second) {
  float next[E];
  const auto load = [&](int row) {
    const std::int64_t begin = static_cast<std::int64_t>(row) * hidden;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const int i = static_cast<int>(threadIdx.x) + j * kLayerNormThreads;
      next[j] = i < hidden ? x[begin + i] : 0.0f;
    }
    if (addend == nullptr) return;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const int i = static_cast<int>(threadIdx.x) + j * kLayerNormThreads;
      if (i < hidden) next[j] += addend[begin + i];
    }
  };
  int row = static_cast<int>(blockIdx.x);
  const LayerNormColumns<T, E> to_first(first, hidden), to_second(second, hidden);
  waterweight::detail::follow_earlier_kernels();
  load(row);
  for (; row < rows; row += static_cast<int>(gridDim.x)) {
    float value[E], sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      value[j] = next[j];
      sum += value[j];
    }
    if (addend != nullptr) {
#pragma unroll
      for (int j = 0; j < E; ++j) {
        const int i = static_cast<int>(threadIdx.x) + j * kLayerNormThreads;
        if (i < hidden) x[static_cast<std::int64_t>(row) * hidden + i] = value[j];
      }
    }
    if (row + static_cast<int>(gridDim.x) < rows) load(row + static_cast<int>(gridDim.x));
    const float mean = block_sum(sum) / static_cast<float>(hidden);
#pragma unroll
    for (int j = 0; j < E; ++j) {
      if (static_cast<int>(threadIdx.x) + j * kLayerNormThreads >= hidden) break;
      value[j] -= mean;
      squares += value[j] * value[j];
    }
    const float variance = block_sum(squares) / static_cast<float>(hidden);
    const float scale = 1.0f / sqrtf(variance + eps);
    to_first.store(value, scale, row, hidden);
    to_second.store(value, scale, row, hidden);
  }
}

template <class T, int E>
cudaError_t launch_layernorm(float* x, const float* addend, int rows, int hidden, float eps,
                             LayerNormOutput<T> first, LayerNormOutput<T> second,
                             cudaStream_t stream) {
  // What an H200 runs at once, for rows of 2560: a block then keeps its weights for several rows.
  constexpr int kMostBlocks = 132 * 3;
  const int blocks = std::min(rows, kMostBlocks);
  return waterweight::detail::launch_following(layernorm_kernel<T, E>,
                                               static_cast<unsigned>(blocks), kLayerNormThreads, 0,
                                               stream, x, addend, rows, hidden, eps, first, second);
}

/// Normalises the rows of x [rows, hidden] once and writes them through one or two pairs of
/// weights: the parallel residual needs both of the same input. addend, unless null: [rows, hidden]
/// that is added to x beforehand, and x written back. All device memory; x, addend and the outputs
/// must not overlap. hidden: at most 8192, else cudaErrorInvalidValue.
template <class T>
cudaError_t layernorm(float* x, const float* addend, int rows, int hidden, float eps,
                      LayerNormOutput<T> first, LayerNormOutput<T> second, cudaStream_t stream) {
  const auto launch = [&](auto elements) {
    return launch_layernorm<T, decltype(elements)::value>(x, addend, rows, hidden, eps, first,
                                                          second, stream);
  };
  const int elements = (hidden + kLayerNormThreads - 1) / kLayerNormThreads;
  if (elements <= 4) return launch(std::integral_constant<int, 4>{});
  if (elements <= 10) return launch(std::integral_constant<int, 10>{});
  if (elements <= 20) return launch(std::integral_constant<int, 20>{});
  if (elements <= 32) return launch(std::integral_constant<int, 32>{});
  return cudaErrorInvalidValue;
}

}  // namespace pythia
