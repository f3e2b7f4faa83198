// Activations as 24-bit fixed point, split into three INT8 planes: how INT8 weights meet the
// integer tensor cores without being converted.
//
// A token's activations x are written as x = step * v with v a whole number, |v| <= 127 * 2^16, and
// v in balanced base 256: v = low + 256 * middle + 65536 * high, each in [-128, 127]. The three
// planes are three rows of the activation operand of mma.m16n8k32.s8, which has rows to spare at
// small M; the INT8 weights are the other operand as they lie in memory. The integer sums are exact
// and do not depend on their order; what is lost is the rounding of x to v, about 2^-24 of the
// largest |x| of the token in each element. Where one element is far larger than the others and
// meets a small weight, that is more than an fp32 accumulation would lose.
#pragma once

#include <cstdint>

#include <waterweight/device/reduce.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

inline constexpr int kPlanes = 3;
/// Largest |v|: leaves the high digit within a byte.
inline constexpr float kFixedPointMax = 127.0f * 65536.0f;

/// |x| as an integer that orders like it: finite < infinity < NaN.
__device__ __forceinline__ std::uint32_t magnitude_bits(float x) {
  return __float_as_uint(x) & 0x7fffffffu;
}

/// The smallest step is the smallest normal fp32, 2^-126: its inverse is finite.
inline constexpr float kFixedPointMaxInverse = 0x1p126f;

/// Step and its inverse for a token whose largest magnitude_bits is `largest`. A token with a NaN
/// or an infinity gets step NaN: so will all that is computed from it be.
struct fixed_point_scale {
  float step;
  float inverse;

  __device__ __forceinline__ explicit fixed_point_scale(std::uint32_t largest) {
    inverse = fminf(kFixedPointMax / __uint_as_float(largest), kFixedPointMaxInverse);
    step = 1.0f / inverse;
    if (largest >= 0x7f800000u) {
      step = __uint_as_float(0x7fffffffu);
      inverse = 0.0f;
    }
  }
};

/// Adding 128 to each of the three balanced digits makes them bytes of one unsigned number, without
/// carries between them; flipping each byte's highest bit takes the 128 off again.
inline constexpr std::uint32_t kDigitOffsets = 0x00808080u;

namespace detail {

/// The digits of one value, each plus 128, in the bytes of a word from the lowest up.
__device__ __forceinline__ std::uint32_t offset_digits(float x, float inverse) {
  return static_cast<std::uint32_t>(__float2int_rn(x * inverse)) + kDigitOffsets;
}

}  // namespace detail

/// The digits of one value in the bytes of a word: low, middle, high.
__device__ __forceinline__ std::uint32_t fixed_point_digits(float x, float inverse) {
  return detail::offset_digits(x, inverse) ^ kDigitOffsets;
}

/// Four consecutive activations as one word of each plane.
struct fixed_point_words {
  std::uint32_t plane[kPlanes];

  __device__ __forceinline__ fixed_point_words(const float (&x)[4], float inverse) {
    const std::uint32_t a = detail::offset_digits(x[0], inverse);
    const std::uint32_t b = detail::offset_digits(x[1], inverse);
    const std::uint32_t c = detail::offset_digits(x[2], inverse);
    const std::uint32_t d = detail::offset_digits(x[3], inverse);
    constexpr std::uint32_t kFlip = 0x80808080u;
    const std::uint32_t ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);
    plane[0] = __byte_perm(ab, cd, 0x5410) ^ kFlip;
    plane[1] = __byte_perm(ab, cd, 0x7632) ^ kFlip;
    plane[2] = __byte_perm(__byte_perm(a, b, 0x0062), __byte_perm(c, d, 0x0062), 0x5410) ^ kFlip;
  }
};

/// The value behind the integer sums of the three planes.
__device__ __forceinline__ float fixed_point_sum(int low, int middle, int high) {
  return fmaf(65536.0f, static_cast<float>(high),
              fmaf(256.0f, static_cast<float>(middle), static_cast<float>(low)));
}

WATERWEIGHT_ARCH_NAMESPACE_END
