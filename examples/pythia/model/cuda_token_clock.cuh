// Time stamps of the token kernel, for `bench --profile`. Every role that is timed has a clock as a
// template argument, and the usual kernel the one that does nothing: not an instruction is added
// to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <waterweight/detail/arch/bulk_copy.cuh>

#include "examples/pythia/model/cuda_token_timed.hpp"
#include "examples/pythia/model/cuda_token_times.hpp"

namespace pythia {

/// Not timed.
struct NoTokenClock {
  __device__ __forceinline__ static void start_token() {}
  __device__ __forceinline__ static void finish_token(TokenTimes*) {}
  __device__ __forceinline__ void start_multiplying() {}
  __device__ __forceinline__ static int now_at(int kind) { return kind; }
  __device__ __forceinline__ void turns(int /*from*/, int /*to*/) {}
  __device__ __forceinline__ void wait(int /*kind*/, int /*vector*/, std::uint64_t* ready,
                                       std::uint32_t parity) {
    waterweight::detail::mbarrier_wait(ready, parity);
  }
  __device__ __forceinline__ void finish_multiplying() {}
  __device__ __forceinline__ void attends() {}
  __device__ __forceinline__ void attended() {}
  __device__ __forceinline__ void finish_attending() {}
};

/// Which of TokenTimes' sums the one at that offset is.
constexpr int sum_at(std::size_t offset) {
  return static_cast<int>(offset / sizeof(std::uint64_t));
}

/// Sums up the clocks of what the block's warps do: the time at which something begins is taken
/// from its sum, and that at which it ends added to it, so that no stamp has to be remembered. The
/// sums are in shared memory: a warp that multiplies has no register to spare beside its tile of
/// weights, and sums in global memory would hold up the releases that pass results to other warps.
class TokenClock {
 public:
  /// By all threads, with a barrier of the block behind it.
  __device__ __forceinline__ static void start_token() {
    if (threadIdx.x < kSums) sums()[threadIdx.x] = 0;
  }
  /// By all threads, with a barrier of the block before it. times: [blocks], zero before the first
  /// token.
  __device__ __forceinline__ static void finish_token(TokenTimes* times) {
    if (threadIdx.x >= kSums) return;
    auto* const of_block = reinterpret_cast<unsigned long long*>(times + blockIdx.x);
    of_block[threadIdx.x] += sums()[threadIdx.x];
  }

  // By a warp that multiplies.

  __device__ __forceinline__ void start_multiplying() { add(kNanoseconds, -nanoseconds()); }
  /// The kind of tiles it is at. Or the compiler would keep a copy of it beside the weights, for
  /// `turns`, and something else on the stack.
  __device__ __forceinline__ static int now_at(int kind) {
    asm volatile("" : "+r"(kind));
    return kind;
  }
  /// From tiles of one kind to those of another; kNoTile: none.
  __device__ __forceinline__ void turns(int from, int to) {
    if (from == to) return;
    const std::uint32_t now = clocks();
    if (from != kNoTile) add(kMultiplying + from, now);
    if (to != kNoTile) add(kMultiplying + to, -now);
  }
  /// For that vector, in the midst of a tile of that kind. Only the first of a warp's tiles of a
  /// kind has to: for the others there is no stamp.
  __device__ __forceinline__ void wait(int kind, int vector, std::uint64_t* ready,
                                       std::uint32_t parity) {
    if (waterweight::detail::mbarrier_ended(ready, parity)) return;
    pass(kMultiplying + kind, kWaiting + vector);
    waterweight::detail::mbarrier_wait(ready, parity);
    pass(kWaiting + vector, kMultiplying + kind);
  }
  __device__ __forceinline__ void finish_multiplying() {
    add(kNanoseconds, nanoseconds());
    add(kWarps, 1);
  }

  // By all warps of attention: the first one speaks for them.

  __device__ __forceinline__ void attends() {
    if (threadIdx.x < 32) add(kAttending, -clocks());
  }
  __device__ __forceinline__ void attended() {
    if (threadIdx.x < 32) add(kAttending, clocks());
  }
  __device__ __forceinline__ void finish_attending() {
    if (threadIdx.x < 32) add(kAttended, 1);
  }

 private:
  static constexpr int kMultiplying = sum_at(offsetof(TokenTimes, multiplying));
  static constexpr int kWaiting = sum_at(offsetof(TokenTimes, waiting));
  static constexpr int kNanoseconds = sum_at(offsetof(TokenTimes, nanoseconds));
  static constexpr int kWarps = sum_at(offsetof(TokenTimes, warps));
  static constexpr int kAttending = sum_at(offsetof(TokenTimes, attending));
  static constexpr int kAttended = sum_at(offsetof(TokenTimes, attended));
  static constexpr int kSums = kAttended + 1;
  static_assert(kSums * sizeof(std::uint64_t) <= sizeof(TokenTimes));

  __device__ __forceinline__ static std::uint32_t* sums() {
    __shared__ std::uint32_t sums[kSums];
    static_assert(sizeof(sums) <= kTimedSharedBytes);
    return sums;
  }
  // A token takes less than what 32 bits of these go round in, over all warps together.
  __device__ __forceinline__ static std::uint32_t clocks() {
    std::uint32_t value;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(value));
    return value;
  }
  __device__ __forceinline__ static std::uint32_t nanoseconds() {
    std::uint32_t value;
    asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(value));
    return value;
  }
  __device__ __forceinline__ static void add(int place, std::uint32_t value) {
    if (threadIdx.x % 32 == 0) atomicAdd(sums() + place, value);
  }
  /// From one thing to another.
  __device__ __forceinline__ static void pass(int from, int to) {
    const std::uint32_t now = clocks();
    add(from, now);
    add(to, -now);
  }
};

}  // namespace pythia
