// Kernels behind quantize_per_channel and dequantize.
#pragma once

#include <math_constants.h>

#include <cfloat>
#include <cstdint>

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/launch.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kQuantizeThreads = 256;

/// 16 bytes of T, or one element where rows are not 16-byte aligned.
template <class T, bool Aligned>
struct element_vector {
  static constexpr int kCount = Aligned ? 16 / static_cast<int>(sizeof(T)) : 1;
  alignas(Aligned ? 16 : alignof(T)) T values[kCount];
};

/// One block per row: absmax, then the row again (from L1/L2) to quantize it.
template <class T, bool Aligned>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_kernel(const T* __restrict__ w, std::int64_t w_ld, std::int8_t* q, std::int64_t q_ld,
                    float* scale, int cols, int* bad_rows) {
  using vector = element_vector<T, Aligned>;
  const T* row = w + blockIdx.x * w_ld;
  std::int8_t* out = q + blockIdx.x * q_ld;
  const int vectors = cols / vector::kCount, tail = vectors * vector::kCount;

  // The magnitude as an integer: finite < infinity < NaN, so one maximum finds all three.
  unsigned magnitude = 0;
  const auto look = [&](T value) {
    magnitude = max(magnitude, __float_as_uint(to_float(value)) & 0x7fffffffu);
  };
  for (int i = threadIdx.x; i < vectors; i += kQuantizeThreads) {
    const vector v = reinterpret_cast<const vector*>(row)[i];
#pragma unroll
    for (int e = 0; e < vector::kCount; ++e) look(v.values[e]);
  }
  for (int k = tail + threadIdx.x; k < cols; k += kQuantizeThreads) look(row[k]);

  __shared__ unsigned warp_max[kQuantizeThreads / 32];
  magnitude = __reduce_max_sync(0xffffffffu, magnitude);
  if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = magnitude;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kQuantizeThreads / 32; ++i) magnitude = max(magnitude, warp_max[i]);

  const bool finite = magnitude < 0x7f800000u;
  float row_scale = finite ? __fdiv_rn(__uint_as_float(magnitude), 127.0f) : CUDART_NAN_F;
  // A subnormal scale would be too coarse to divide by: such a row counts as zeros.
  if (row_scale < FLT_MIN) row_scale = 0.0f;
  if (threadIdx.x == 0) {
    scale[blockIdx.x] = row_scale;
    if (!finite) atomicAdd(bad_rows, 1);
  }

  const auto quantize = [&](T value) -> std::int8_t {
    if (!(row_scale > 0.0f)) return 0;
    return static_cast<std::int8_t>(rintf(__fdiv_rn(to_float(value), row_scale)));
  };
  for (int i = threadIdx.x; i < vectors; i += kQuantizeThreads) {
    const vector v = reinterpret_cast<const vector*>(row)[i];
    alignas(vector::kCount) std::int8_t result[vector::kCount];
#pragma unroll
    for (int e = 0; e < vector::kCount; ++e) result[e] = quantize(v.values[e]);
    if constexpr (vector::kCount == 8) {
      *reinterpret_cast<uint2*>(out + 8 * i) = *reinterpret_cast<const uint2*>(result);
    } else if constexpr (vector::kCount == 4) {
      *reinterpret_cast<unsigned*>(out + 4 * i) = *reinterpret_cast<const unsigned*>(result);
    } else {
      out[i] = result[0];
    }
  }
  for (int k = tail + threadIdx.x; k < cols; k += kQuantizeThreads) out[k] = quantize(row[k]);
}

template <class T>
__global__ void __launch_bounds__(kQuantizeThreads)
    dequantize_kernel(const std::int8_t* __restrict__ q, std::int64_t q_ld,
                      const float* __restrict__ scale, T* w, std::int64_t w_ld, int cols) {
  const float row_scale = scale[blockIdx.x];
  for (int k = threadIdx.x; k < cols; k += kQuantizeThreads) {
    w[blockIdx.x * w_ld + k] =
        from_float<T>(row_scale * static_cast<float>(q[blockIdx.x * q_ld + k]));
  }
}

template <class T>
cudaError_t launch_quantize(const matrix_view<const T>& w, const mutable_int8_weight_view& q,
                            int* bad_rows, cudaStream_t stream) {
  static_assert(is_activation_v<T> || std::is_same_v<T, float>,
                "weights must be float, __half or __nv_bfloat16");
  const bool valid = valid_matrix(w) && valid_weights(q) && w.rows == q.rows && w.cols == q.cols &&
                     bad_rows != nullptr;
  if (!valid) return cudaErrorInvalidValue;
  const bool aligned = is_aligned(w.data, 16) && w.ld * sizeof(T) % 16 == 0 &&
                       is_aligned(q.data, 8) && q.ld % 8 == 0;
  return launch(aligned ? quantize_kernel<T, true> : quantize_kernel<T, false>,
                dim3(static_cast<unsigned>(w.rows)), kQuantizeThreads, 0, stream, w.data, w.ld,
                q.data, q.ld, q.scale, static_cast<int>(w.cols), bad_rows);
}

template <class T>
cudaError_t launch_dequantize(const int8_weight_view& q, const matrix_view<T>& w,
                              cudaStream_t stream) {
  static_assert(is_activation_v<T> || std::is_same_v<T, float>,
                "weights must be float, __half or __nv_bfloat16");
  const bool valid = valid_matrix(w) && valid_weights(q) && w.rows == q.rows && w.cols == q.cols;
  if (!valid) return cudaErrorInvalidValue;
  return launch(dequantize_kernel<T>, dim3(static_cast<unsigned>(w.rows)), kQuantizeThreads, 0,
                stream, q.data, q.ld, q.scale, w.data, w.ld, static_cast<int>(w.cols));
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
