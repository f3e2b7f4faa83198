// Deterministic block-wide reductions: a fixed tree inside each warp, then the warps in order.
#pragma once

#include <cstdint>

#include <waterweight/config.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// Combines `value` of a warp's lanes by the associative, commutative `op`; every lane gets the
/// result.
template <class T, class Op>
__device__ __forceinline__ T warp_reduce(T value, const Op& op) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = op(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

/// Combines `value` of all Threads threads by the associative `op`; every thread gets the result.
/// `scratch`: Threads / 32 elements of shared memory, free for reuse after the next __syncthreads.
template <int Threads, class T, class Op>
__device__ __forceinline__ T block_reduce(T value, T* scratch, const Op& op) {
  value = warp_reduce(value, op);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = scratch[0];
#pragma unroll
  for (int warp = 1; warp < Threads / 32; ++warp) value = op(value, scratch[warp]);
  return value;
}

/// Monotone map of fp32 to unsigned integers, so that scores compare as integers: -0 sorts just
/// below +0 and NaN below everything, wherever its payload would put it.
__device__ __forceinline__ std::uint32_t ordered_score(float score) {
  const std::uint32_t bits = __float_as_uint(score);
  if (score != score) return 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// The smallest (score, position) pair of a block as one integer: argmin with the tie rule "lowest
/// position" built in, independent of who holds which slot. Larger than any real pair: kNoVictim.
inline constexpr unsigned long long kNoVictim = ~0ull;

__device__ __forceinline__ unsigned long long victim_key(float score, std::int32_t position) {
  return static_cast<unsigned long long>(ordered_score(score)) << 32 |
         static_cast<std::uint32_t>(position);
}

WATERWEIGHT_ARCH_NAMESPACE_END
