// How the activations of a block_gemv arrive: straight from global memory, or staged in shared
// memory, as they are or through a LayerNorm.
//
// An activation source offers load16(m, k, uint4 (&out)[2]): X[m, k .. k + 15] as T, k a multiple
// of 16.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/device/reduce.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// X[M, K] of T in global memory, rows `ld` apart, 16-byte aligned. L1 and L2 serve the reuse.
template <class T>
struct global_activations {
  const T* x;
  std::int64_t ld;

  __device__ __forceinline__ void load16(int m, int k, uint4 (&out)[2]) const {
    const uint4* row = reinterpret_cast<const uint4*>(x + m * ld + k);
    out[0] = row[0];
    out[1] = row[1];
  }
};

/// X[M, k_begin .. k_begin + width) staged in shared memory. Rows are padded by 16 bytes: the eight
/// rows that a warp's fragment loads touch then fall into different banks.
template <class T>
struct shared_activations {
  T* tile;  ///< 16-byte aligned, elements(M, width) of T
  int k_begin;
  int width;  ///< multiple of 16

  WATERWEIGHT_HOST_DEVICE static constexpr int pitch(int width) { return width + 8; }
  WATERWEIGHT_HOST_DEVICE static constexpr int elements(int m, int width) {
    return m * pitch(width);
  }

  __device__ __forceinline__ T* row(int m) const { return tile + m * pitch(width); }

  __device__ __forceinline__ void load16(int m, int k, uint4 (&out)[2]) const {
    const uint4* source = reinterpret_cast<const uint4*>(row(m) + (k - k_begin));
    out[0] = source[0];
    out[1] = source[1];
  }
};

/// Copies the rows of X (rows `ld` apart, 16-byte aligned) into `target`. Collective; ends with a
/// barrier.
template <int Threads, class T>
__device__ __forceinline__ void stage_rows(const T* x, std::int64_t ld, int m_count,
                                           const shared_activations<T>& target) {
  const int vectors = target.width / 8;
  for (int i = threadIdx.x; i < m_count * vectors; i += Threads) {
    const int m = i / vectors, k = i % vectors * 8;
    *reinterpret_cast<uint4*>(target.row(m) + k) =
        *reinterpret_cast<const uint4*>(x + m * ld + target.k_begin + k);
  }
  __syncthreads();
}

/// LayerNorm's parameters: y = (x - mean) / sqrt(variance + epsilon) * weight + bias, [K] each.
template <class T>
struct layernorm_parameters {
  const T* weight;
  const T* bias;
  float epsilon;
};

namespace detail {

/// Four elements from k of one row, normalised and stored.
template <class T>
__device__ __forceinline__ void store_normalised(T* out, const float4& x, float mean, float rstd,
                                                 const layernorm_parameters<T>& norm, int k) {
  const uint2 weight = *reinterpret_cast<const uint2*>(norm.weight + k);
  const uint2 bias = *reinterpret_cast<const uint2*>(norm.bias + k);
  const float2 w0 = unpack_pair<T>(weight.x), w1 = unpack_pair<T>(weight.y);
  const float2 b0 = unpack_pair<T>(bias.x), b1 = unpack_pair<T>(bias.y);
  const std::uint32_t low =
      pack_pair<T>((x.x - mean) * rstd * w0.x + b0.x, (x.y - mean) * rstd * w0.y + b0.y);
  const std::uint32_t high =
      pack_pair<T>((x.z - mean) * rstd * w1.x + b1.x, (x.w - mean) * rstd * w1.y + b1.y);
  *reinterpret_cast<uint2*>(out + k) = make_uint2(low, high);
}

/// Normalises one row with the `Lanes` threads that call it together; `sum` adds over them.
template <int Lanes, class T, class Sum>
__device__ __forceinline__ void layernorm_row(const float* x, int width, T* out,
                                              const layernorm_parameters<T>& norm, int lane,
                                              Sum sum) {
  const auto for_each_four = [&](const auto& f) {
    for (int k = lane * 4; k < width; k += Lanes * 4) {
      f(*reinterpret_cast<const float4*>(x + k), k);
    }
  };
  float total = 0.0f;
  for_each_four([&](const float4& v, int) { total += (v.x + v.y) + (v.z + v.w); });
  const float mean = sum(total) / width;
  // Two passes (the second from L1): the variance of a residual stream with outliers would lose
  // its digits as a difference of two large sums.
  float squares = 0.0f;
  for_each_four([&](const float4& v, int) {
    const float a = v.x - mean, b = v.y - mean, c = v.z - mean, d = v.w - mean;
    squares += (a * a + b * b) + (c * c + d * d);
  });
  const float rstd = rsqrtf(sum(squares) / width + norm.epsilon);
  for_each_four([&](const float4& v, int k) { store_normalised(out, v, mean, rstd, norm, k); });
}

}  // namespace detail

/// Stages LayerNorm(X) for fp32 rows X[M, width], rows `ld` apart, 16-byte aligned, width a
/// multiple of 4 (the whole row: k_begin must be 0). `scratch`: 2 * Threads / 32 floats of shared
/// memory. Collective; ends with a barrier. One row is normalised by the whole block, more by a
/// warp each.
template <int Threads, class T>
__device__ __forceinline__ void stage_layernorm(const float* x, std::int64_t ld, int m_count,
                                                const layernorm_parameters<T>& norm,
                                                const shared_activations<T>& target,
                                                float* scratch) {
  const auto add = [](float a, float b) { return a + b; };
  if (m_count == 1) {
    // Two scratch areas in turn: no barrier is needed between the two sums.
    detail::layernorm_row<Threads>(x, target.width, target.row(0), norm, threadIdx.x,
                                   [&, part = scratch](float value) mutable {
                                     const float total = block_reduce<Threads>(value, part, add);
                                     part += Threads / 32;
                                     return total;
                                   });
  } else {
    for (int m = threadIdx.x / 32; m < m_count; m += Threads / 32) {
      detail::layernorm_row<32>(x + m * ld, target.width, target.row(m), norm, threadIdx.x % 32,
                                [&](float value) { return warp_reduce(value, add); });
    }
  }
  __syncthreads();
}

WATERWEIGHT_ARCH_NAMESPACE_END
