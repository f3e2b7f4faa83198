// 16-bit storage types for the host: bits, exact widening, and rounding to nearest even from any
// arithmetic type in one step (a double is not rounded twice). Arithmetic happens after widening.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <waterweight/config.hpp>

WATERWEIGHT_NAMESPACE_BEGIN
namespace reference {
namespace detail {

/// The bits of `value` in a format of one sign, `exponent_bits` and `mantissa_bits`, rounded to
/// nearest even; overflow gives infinity, NaN stays a quiet NaN of the same sign.
template <int exponent_bits, int mantissa_bits>
inline std::uint16_t round_to_16_bits(double value) {
  static_assert(1 + exponent_bits + mantissa_bits == 16, "a 16-bit format");
  constexpr int bias = (1 << (exponent_bits - 1)) - 1;
  constexpr std::uint64_t infinity = ((std::uint64_t{1} << exponent_bits) - 1) << mantissa_bits;
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint64_t sign = bits >> 63 << 15;
  const int exponent = static_cast<int>(bits >> 52 & 0x7ff);
  const std::uint64_t mantissa = bits & ((std::uint64_t{1} << 52) - 1);

  if (exponent == 0x7ff) {
    const std::uint64_t quiet = std::uint64_t{1} << (mantissa_bits - 1);
    const std::uint64_t payload = mantissa ? quiet | mantissa >> (52 - mantissa_bits) : 0;
    return static_cast<std::uint16_t>(sign | infinity | payload);
  }
  if (exponent == 0) return static_cast<std::uint16_t>(sign);  // far below every 16-bit subnormal

  int biased = exponent - 1023 + bias;
  int shift = 52 - mantissa_bits;
  if (biased < 1) {  // a subnormal result: the significand moves further right
    shift += 1 - biased;
    biased = 1;
  }
  if (shift >= 54) return static_cast<std::uint16_t>(sign);  // less than half the least subnormal
  const std::uint64_t significand = mantissa | std::uint64_t{1} << 52;
  const std::uint64_t half = std::uint64_t{1} << (shift - 1);
  const std::uint64_t rest = significand & (2 * half - 1);
  std::uint64_t kept = significand >> shift;
  if (rest > half || (rest == half && (kept & 1))) ++kept;
  // The implicit bit of `kept` adds one to the exponent field; a carry out of it adds one more.
  const std::uint64_t magnitude = (static_cast<std::uint64_t>(biased - 1) << mantissa_bits) + kept;
  return static_cast<std::uint16_t>(sign | (magnitude < infinity ? magnitude : infinity));
}

inline float float_from_bits(std::uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace detail

/// IEEE binary16.
struct float16 {
  std::uint16_t bits = 0;

  float16() = default;
  template <class A, class = std::enable_if_t<std::is_arithmetic<A>::value>>
  explicit float16(A value) : bits(detail::round_to_16_bits<5, 10>(static_cast<double>(value))) {}

  static float16 from_bits(std::uint16_t bits) {
    float16 result;
    result.bits = bits;
    return result;
  }

  operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16;
    const std::uint32_t magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) {
      return detail::float_from_bits(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
    }
    // As a float the shifted bits are 2^-112 times the value, subnormals included.
    const float scaled = detail::float_from_bits(magnitude << 13) * 0x1p112f;
    return sign ? -scaled : scaled;
  }
};

/// bfloat16: the upper half of a binary32.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;
  template <class A, class = std::enable_if_t<std::is_arithmetic<A>::value>>
  explicit bfloat16(A value) : bits(detail::round_to_16_bits<8, 7>(static_cast<double>(value))) {}

  static bfloat16 from_bits(std::uint16_t bits) {
    bfloat16 result;
    result.bits = bits;
    return result;
  }

  operator float() const { return detail::float_from_bits(static_cast<std::uint32_t>(bits) << 16); }
};

}  // namespace reference
WATERWEIGHT_NAMESPACE_END
