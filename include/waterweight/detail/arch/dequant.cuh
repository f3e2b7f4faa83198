// INT8 to 16-bit, four values at a time, exactly: every |q| <= 127 is representable in both types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include <waterweight/config.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// The bytes of `four` (q0 lowest) as pairs (q0, q1) and (q2, q3) of T.
template <class T>
__device__ __forceinline__ void dequantize_four(std::uint32_t four, std::uint32_t& pair01,
                                                std::uint32_t& pair23);

// u = q + 128 is an unsigned byte, and the half with bits 0x64uu is exactly 1024 + u: one byte
// permute places two of them, one subtraction of 1152 = 1024 + 128 gives both q. 5 instructions.
template <>
__device__ __forceinline__ void dequantize_four<__half>(std::uint32_t four, std::uint32_t& pair01,
                                                        std::uint32_t& pair23) {
  const std::uint32_t u = four ^ 0x80808080u;
  const std::uint32_t magic01 = __byte_perm(u, 0x64646464u, 0x4140);
  const std::uint32_t magic23 = __byte_perm(u, 0x64646464u, 0x4342);
  constexpr std::uint32_t k1152 = 0x64806480u;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(pair01) : "r"(magic01), "r"(k1152));
  asm("sub.f16x2 %0, %1, %2;" : "=r"(pair23) : "r"(magic23), "r"(k1152));
}

// bf16 has 7 mantissa bits, one too few for the byte: split q into its low 7 bits and its sign bit.
// a = 128 + (q & 127) and c = 128 for q >= 0, 256 for q < 0 are both exact, and q = a - c.
// The difference is an fma because sm_80 has no bf16 subtraction of its own.
// `bytes` has the bytes of q in its lower halves and 0x43 in the upper ones: one constant to an
// instruction, as the hardware has it.
__device__ __forceinline__ std::uint32_t dequantize_pair_bf16(std::uint32_t bytes) {
  const std::uint32_t a = bytes & 0xff7fff7fu;
  const std::uint32_t c = bytes & 0xff80ff80u;
  std::uint32_t pair;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(c), "r"(0xbf80bf80u), "r"(a));
  return pair;
}

template <>
__device__ __forceinline__ void dequantize_four<__nv_bfloat16>(std::uint32_t four,
                                                               std::uint32_t& pair01,
                                                               std::uint32_t& pair23) {
  pair01 = dequantize_pair_bf16(__byte_perm(four, 0x43434343u, 0x4140));
  pair23 = dequantize_pair_bf16(__byte_perm(four, 0x43434343u, 0x4342));
}

/// INT8 as pairs of T like dequantize_four, but of q / kUnit: four of them in 5 instructions, or
/// the two in the low half of a word, whatever its other bytes are, in 3, for either type.
template <class T>
struct scaled_dequantizer {
  static constexpr float kUnit = 1.0f;
  __device__ static __forceinline__ void four(std::uint32_t four, std::uint32_t& pair01,
                                              std::uint32_t& pair23) {
    dequantize_four<T>(four, pair01, pair23);
  }
  __device__ static __forceinline__ std::uint32_t two(std::uint32_t two) {
    const std::uint32_t bytes = __byte_perm(two, 0, 0x4140);
    std::uint32_t pair;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(bytes ^ 0x64806480u), "r"(0x64806480u));
    return pair;
  }
};

// The bf16 with bits 0x00uu is exactly u * 2^-133: subnormals and the binade above them have the
// same spacing. One fma makes u * 2^-6 - 2 = q / 64 of it, exact as well.
template <>
struct scaled_dequantizer<__nv_bfloat16> {
  static constexpr float kUnit = 64.0f;
  __device__ static __forceinline__ void four(std::uint32_t four, std::uint32_t& pair01,
                                              std::uint32_t& pair23) {
    const std::uint32_t u = four ^ 0x80808080u;
    pair01 = pair(__byte_perm(u, 0, 0x4140));
    pair23 = pair(__byte_perm(u, 0, 0x4342));
  }
  __device__ static __forceinline__ std::uint32_t two(std::uint32_t two) {
    return pair(__byte_perm(two, 0, 0x4140) ^ 0x00800080u);
  }

 private:
  __device__ static __forceinline__ std::uint32_t pair(std::uint32_t bytes) {
    constexpr std::uint32_t kTwoTo127 = 0x7f007f00u, kMinusTwo = 0xc000c000u;
    std::uint32_t pair;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(bytes), "r"(kTwoTo127), "r"(kMinusTwo));
    return pair;
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
