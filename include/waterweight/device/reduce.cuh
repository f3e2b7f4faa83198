// Deterministic block-wide reductions: a fixed tree inside each warp, then the warps in order.
#pragma once

#include <cstdint>

#include <waterweight/config.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// Barrier of `Threads` threads whose number within their group is threadIdx.x: __syncthreads() for
/// Barrier 0, where the group is the whole block. A block that divides its warps among several jobs
/// gives each group a Barrier of 1 to 15 of its own.
template <int Threads, int Barrier>
__device__ __forceinline__ void group_sync() {
  if constexpr (Barrier == 0) {
    __syncthreads();
  } else {
    asm volatile("bar.sync %0, %1;" ::"n"(Barrier), "n"(Threads) : "memory");
  }
}

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

/// The sum of `value` over a warp's lanes up to and including the caller's.
__device__ __forceinline__ int warp_prefix_sum(int value) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, value, offset);
    if (static_cast<int>(threadIdx.x % 32) >= offset) value += before;
  }
  return value;
}

/// Combines `value` of all Threads threads by the associative `op`; every thread gets the result.
/// `scratch`: Threads / 32 elements of shared memory, free for reuse after the next barrier.
template <int Threads, int Barrier = 0, class T, class Op>
__device__ __forceinline__ T block_reduce(T value, T* scratch, const Op& op) {
  value = warp_reduce(value, op);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  group_sync<Threads, Barrier>();
  value = scratch[0];
#pragma unroll
  for (int warp = 1; warp < Threads / 32; ++warp) value = op(value, scratch[warp]);
  return value;
}

/// Ranks `flag` among the block's threads in thread order; `total` is how many are set.
/// `scratch`: Threads / 32 ints of shared memory. Collective; its first barrier also orders what
/// the block did before.
template <int Threads, int Barrier = 0>
__device__ __forceinline__ int block_rank(bool flag, int* scratch, int& total) {
  const unsigned ballot = __ballot_sync(0xffffffffu, flag);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  group_sync<Threads, Barrier>();  // scratch may still be read by the previous call
  if (lane == 0) scratch[warp] = __popc(ballot);
  group_sync<Threads, Barrier>();
  int before = 0;
  total = 0;
#pragma unroll
  for (int w = 0; w < Threads / 32; ++w) {
    before += w < warp ? scratch[w] : 0;
    total += scratch[w];
  }
  return before + __popc(ballot & ((1u << lane) - 1));
}

/// Lists, ascending, the first `limit` integers of [begin, end) of which `wanted` is true; returns
/// how many there are. `list` is shared or global memory, complete after the next barrier.
template <int Threads, int Barrier = 0, class Predicate>
__device__ int block_list(int begin, int end, const Predicate& wanted, int* list, int limit,
                          int* scratch) {
  int listed = 0;
  for (int base = begin; base < end; base += Threads) {
    const int i = base + threadIdx.x;
    const bool flag = i < end && wanted(i);
    int found;
    const int rank = listed + block_rank<Threads, Barrier>(flag, scratch, found);
    if (flag && rank < limit) list[rank] = i;
    listed += found;
  }
  return min(listed, limit);
}

/// Monotone map of fp32 to unsigned integers, so that scores compare as integers: -0 sorts just
/// below +0 and NaN below everything, wherever its payload would put it.
__device__ __forceinline__ std::uint32_t ordered_score(float score) {
  const std::uint32_t bits = __float_as_uint(score);
  if (score != score) return 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// The float behind ordered_score; for 0, a NaN's, minus infinity.
__device__ __forceinline__ float from_ordered_score(std::uint32_t ordered) {
  if (ordered == 0) return -INFINITY;
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

/// The smallest (score, position) pair of a block as one integer: argmin with the tie rule "lowest
/// position" built in, independent of who holds which slot. Larger than any real pair: kNoVictim.
inline constexpr unsigned long long kNoVictim = ~0ull;

__device__ __forceinline__ unsigned long long victim_key(float score, std::int32_t position) {
  return static_cast<unsigned long long>(ordered_score(score)) << 32 |
         static_cast<std::uint32_t>(position);
}

/// The smallest victim_key of a warp, in two instructions that reduce 32 bits each.
__device__ __forceinline__ unsigned long long warp_min_key(unsigned long long key) {
  const auto score = static_cast<std::uint32_t>(key >> 32);
  const std::uint32_t lowest = __reduce_min_sync(0xffffffffu, score);
  const std::uint32_t position = __reduce_min_sync(
      0xffffffffu, score == lowest ? static_cast<std::uint32_t>(key) : 0xffffffffu);
  return static_cast<unsigned long long>(lowest) << 32 | position;
}

/// The smallest victim_key of a block; every thread gets it. scratch as in block_reduce.
template <int Threads, int Barrier = 0>
__device__ __forceinline__ unsigned long long block_min_key(unsigned long long key,
                                                            unsigned long long* scratch) {
  static_assert(Threads <= 1024, "a lane per warp");
  key = warp_min_key(key);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = key;
  group_sync<Threads, Barrier>();
  const int lane = threadIdx.x % 32;
  return warp_min_key(lane < Threads / 32 ? scratch[lane] : kNoVictim);
}

WATERWEIGHT_ARCH_NAMESPACE_END
