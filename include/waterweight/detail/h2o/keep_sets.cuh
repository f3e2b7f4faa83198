// Sets of kept keys that several heads share, and the sums of scores that choose them.
#pragma once

#include <cstdint>

#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Shared sets over this many layers; none where each head keeps its own keys.
constexpr int keep_sets(const h2o_policy& policy, int layers) {
  return policy.granularity == h2o_granularity::per_head    ? 0
         : policy.granularity == h2o_granularity::per_layer ? layers
                                                            : 1;
}

/// Row of a head's set in sums [keep sets, batch, columns].
__device__ __forceinline__ std::int64_t keep_set_row(const h2o_policy& policy, int layer,
                                                     int sequence, int batch) {
  return policy.granularity == h2o_granularity::per_layer ? std::int64_t{layer} * batch + sequence
                                                          : sequence;
}

inline constexpr int kSumColumns = 32;
inline constexpr int kSumLayers = 8;

/// sums[set, sequence, column]: the heads of a layer are added in order, then the layers in order.
/// One block per (32 columns, sequence, set); its rows of threads take a layer each. `layers` is
/// how many a set has.
/// A template only so that no header defines a plain kernel twice.
template <int Columns, int Layers>
__global__ void __launch_bounds__(Columns* Layers)
    sum_scores_kernel(const float* __restrict__ scores, std::int64_t layer_stride, int kv_heads,
                      int columns, int layers, float* sums) {
  __shared__ float layer_sums[Layers][Columns];
  const int x = threadIdx.x % Columns, y = threadIdx.x / Columns;
  const int column = blockIdx.x * Columns + x, sequence = blockIdx.y, set = blockIdx.z;
  const bool inside = column < columns;
  float sum = 0.0f;
  for (int base = 0; base < layers; base += Layers) {
    const int layer = base + y;
    if (inside && layer < layers) {
      const float* first = scores + (std::int64_t{set} * layers + layer) * layer_stride +
                           std::int64_t{sequence} * kv_heads * columns + column;
      float heads = 0.0f;
#pragma unroll 8
      for (int head = 0; head < kv_heads; ++head) {
        heads += __ldg(first + std::int64_t{head} * columns);
      }
      layer_sums[y][x] = heads;
    }
    __syncthreads();
    if (y == 0) {
      for (int i = 0; i < Layers && base + i < layers; ++i) sum += layer_sums[i][x];
    }
    __syncthreads();
  }
  if (y == 0 && inside) {
    sums[(std::int64_t{set} * gridDim.y + sequence) * columns + column] = sum;
  }
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
