// The arithmetic of quantize_per_channel: the largest magnitude of a row, and the division by its
// scale, rounded as IEEE 754 asks, in few enough instructions to keep pace with memory.
#pragma once

#include <math_constants.h>

#include <cfloat>
#include <cstdint>

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/mma.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// The largest |x| of what add() saw; NaN once one was among them.
template <class T>
class row_magnitude {
 public:
  __device__ __forceinline__ void add(const uint4& vector) {
    add_word(vector.x);
    add_word(vector.y);
    add_word(vector.z);
    add_word(vector.w);
  }
  __device__ __forceinline__ void add(T x) { add_float(fabsf(to_float(x))); }

  /// As the bits of a non-negative float: finite < infinity < NaN, so that an integer maximum
  /// merges the magnitudes of several threads.
  __device__ __forceinline__ std::uint32_t bits() {
    if constexpr (sizeof(T) == 2) {
      const float2 both = unpack_pair<T>(pair_);
      add_float(both.x);
      add_float(both.y);
    }
    return __float_as_uint(largest_) & 0x7fffffffu;
  }

 private:
  __device__ __forceinline__ void add_word(std::uint32_t word) {
    if constexpr (std::is_same_v<T, float>) {
      add_float(fabsf(__uint_as_float(word)));
    } else if constexpr (std::is_same_v<T, __half>) {
      asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(pair_) : "r"(word & 0x7fff7fffu));
    } else {
      asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(pair_) : "r"(word & 0x7fff7fffu));
    }
  }
  __device__ __forceinline__ void add_float(float magnitude) {
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(largest_) : "f"(magnitude));
  }

  float largest_ = 0.0f;
  std::uint32_t pair_ = 0;  ///< of 16-bit types
};

/// Quantizes the elements of a row whose largest magnitude has these bits.
template <class T>
class row_quantizer {
 public:
  __device__ __forceinline__ explicit row_quantizer(std::uint32_t magnitude_bits) {
    finite_ = magnitude_bits < 0x7f800000u;
    scale_ = finite_ ? __fdiv_rn(__uint_as_float(magnitude_bits), 127.0f) : CUDART_NAN_F;
    // A subnormal scale would be too coarse to divide by: such a row counts as zeros.
    if (scale_ < FLT_MIN) scale_ = 0.0f;
    if (scale_ > 0.0f) {
      // Next to the least floats the remainders below would not be exact.
      if (kWide && scale_ < 0x1p-100f) factor_ = 0x1p64f;
      divisor_ = scale_ * factor_;
      inverse_ = __frcp_rn(divisor_);
      keep_ = ~0u;
    }
  }

  __device__ __forceinline__ bool finite() const { return finite_; }
  __device__ __forceinline__ float scale() const { return scale_; }

  __device__ __forceinline__ std::int8_t one(T x) const {
    return static_cast<std::int8_t>(integer(to_float(x)) & keep_);
  }
  /// Four elements of the row as the bytes of a word.
  __device__ __forceinline__ std::uint32_t four(float a, float b, float c, float d) const {
    const std::uint32_t ab = __byte_perm(integer(a), integer(b), 0x0040);
    const std::uint32_t cd = __byte_perm(integer(c), integer(d), 0x0040);
    return __byte_perm(ab, cd, 0x5410) & keep_;
  }

 private:
  static constexpr bool kWide = !std::is_same_v<T, __half>;  ///< fp16 has no such small scales

  /// round-half-even(x / scale), correctly rounded twice, in the lowest byte. The second step of
  /// Newton's iteration starts from one of the two floats around the quotient and is then exact
  /// (Markstein 1990); adding 1.5 * 2^23 rounds to an integer.
  __device__ __forceinline__ std::uint32_t integer(float x) const {
    if constexpr (kWide) x = __fmul_rn(x, factor_);
    float quotient = __fmul_rn(x, inverse_);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      quotient = __fmaf_rn(__fmaf_rn(-quotient, divisor_, x), inverse_, quotient);
    }
    return __float_as_uint(__fadd_rn(quotient, 12582912.0f));
  }

  bool finite_;
  float scale_;
  float factor_ = 1.0f;
  float divisor_ = 0.0f, inverse_ = 0.0f;  ///< of x * factor
  std::uint32_t keep_ = 0;                 ///< zero for rows of zeros and those not finite
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
