// How INT8 weights meet 16-bit activations in the streaming kernel, with three instructions for
// four weights: a weight plus 128 is a byte, and a byte is, as it stands, the bits of a subnormal
// __half. Tensor cores multiply those like any other. What the 128 add to a sum depends on the
// activations alone and is taken off beforehand; bf16 activations become __half by a power of 2 of
// their own.
#pragma once

#include <waterweight/detail/arch/mma.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// The bytes of `four` (q0 lowest) plus 128, times 2^-24, as pairs (q0, q2) and (q1, q3) of __half:
/// such numbers are the subnormal ones, whose bits are the byte itself.
__device__ __forceinline__ void offset_four(std::uint32_t four, std::uint32_t& pair02,
                                            std::uint32_t& pair13) {
  pair02 = (four & 0x00ff00ffu) ^ 0x00800080u;
  pair13 = __byte_perm(four, 0, 0x4341) ^ 0x00800080u;
}

inline constexpr float kStreamUnit = 0x1p24f;  ///< what sums of offset_four() are multiplied by

/// Activations as __half in the order of offset_four(), and what takes sums back to their scale.
template <class T>
struct stream_sum_factor;
template <class T>
struct stream_activation_scale;

template <>
struct stream_sum_factor<__half> {
  __device__ __forceinline__ float apply(float sum, int) const { return sum * kStreamUnit; }
};

template <>
struct stream_activation_scale<__half> {
  template <class X>
  __device__ __forceinline__ stream_activation_scale(const X&, int) {}
  __device__ __forceinline__ void apply(std::uint32_t& first, std::uint32_t& second) const {
    const std::uint32_t pair01 = first, pair23 = second;
    first = __byte_perm(pair01, pair23, 0x5410);
    second = __byte_perm(pair01, pair23, 0x7632);
  }
  __device__ __forceinline__ stream_sum_factor<__half> factor_of(int) const { return {}; }
};

template <>
struct stream_sum_factor<__nv_bfloat16> {
  std::uint32_t tokens;  ///< powers of 2 as a pair of bf16
  __device__ __forceinline__ float apply(float sum, int i) const {
    const float2 factors = unpack_pair<__nv_bfloat16>(tokens);
    return sum * kStreamUnit * (i == 0 ? factors.x : factors.y);
  }
};

/// A token's activations of this warp times the power of 2 that takes the largest into [2^14,
/// 2^15): all that is not smaller by 2^28 stays exact. NaN and infinity make the token NaN.
template <>
struct stream_activation_scale<__nv_bfloat16> {
  float inverse;
  std::uint32_t factor;  ///< its bits as bf16

  template <int Chunks, int NTiles>
  __device__ __forceinline__ stream_activation_scale(const std::uint32_t (&x)[Chunks][NTiles][8],
                                                     int j) {
    std::uint32_t largest = 0;  // exponents and mantissas, of either element
#pragma unroll
    for (int c = 0; c < Chunks; ++c) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        largest = __vmaxu2(largest, x[c][j][i] & 0x7fff7fffu);
      }
    }
    largest = max(largest & 0xffffu, largest >> 16);
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    // Both factors are normal numbers: exponents 127 +- (14 - e), e at least -112.
    const int exponent = max(static_cast<int>(largest >> 7), 15);
    inverse = __uint_as_float(static_cast<std::uint32_t>(127 + 14 + 127 - exponent) << 23);
    factor = static_cast<std::uint32_t>(exponent - 14) << 7;
    if (exponent == 255) inverse = __uint_as_float(0x7fffffffu);
  }
  __device__ __forceinline__ void apply(std::uint32_t& first, std::uint32_t& second) const {
    const float2 a = unpack_pair<__nv_bfloat16>(first), b = unpack_pair<__nv_bfloat16>(second);
    first = pack_pair<__half>(a.x * inverse, b.x * inverse);
    second = pack_pair<__half>(a.y * inverse, b.y * inverse);
  }
  /// For the sums of tokens m and m + 1, which this lane has; lane 4 * m has the first's scale.
  __device__ __forceinline__ stream_sum_factor<__nv_bfloat16> factor_of(int m) const {
    return {__shfl_sync(0xffffffffu, factor, 4 * m) | __shfl_sync(0xffffffffu, factor, 4 * m + 4)
                                                          << 16};
  }
};

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
