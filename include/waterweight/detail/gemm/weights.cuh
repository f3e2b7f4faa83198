// What the GEMM kernels need to know of a weight type: INT8 with a scale per row, or 16 bit.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/dequant.cuh>
#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// W[N, K] as the kernels take it. Element = std::int8_t or the activation type.
template <class Element>
struct weight_operand {
  const Element* data;
  const float* scale;  ///< [N]; null for 16-bit weights
  int rows;
  int cols;
  std::int64_t ld;
};

template <class Element>
inline constexpr bool is_quantized_v = std::is_same_v<Element, std::int8_t>;

/// The per-channel scale, applied once to the finished sum: it never enters the loop over K.
template <class Element>
__device__ __forceinline__ float apply_scale(const weight_operand<Element>& w, float acc, int n) {
  if constexpr (is_quantized_v<Element>) {
    return acc * __ldg(w.scale + n);
  } else {
    return acc;
  }
}

/// Sixteen consecutive weights of one row in registers, as loaded (16 or 32 bytes).
template <class Element>
struct weight_group {
  static constexpr int kVectors = sizeof(Element);  // 16-byte vectors
  uint4 raw[kVectors];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) raw[i] = make_uint4(0, 0, 0, 0);
  }

  /// Weights 4 * step .. 4 * step + 3 as two pairs of T. `step` must be a compile-time constant
  /// after unrolling.
  template <class T>
  __device__ __forceinline__ void four(int step, std::uint32_t& pair01,
                                       std::uint32_t& pair23) const {
    if constexpr (is_quantized_v<Element>) {
      const std::uint32_t word = step == 0   ? raw[0].x
                                 : step == 1 ? raw[0].y
                                 : step == 2 ? raw[0].z
                                             : raw[0].w;
      dequantize_four<T>(word, pair01, pair23);
    } else {
      const uint4& vector = raw[step / 2];
      pair01 = step % 2 == 0 ? vector.x : vector.z;
      pair23 = step % 2 == 0 ? vector.y : vector.w;
    }
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
