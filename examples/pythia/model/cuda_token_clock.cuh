// Time stamps of the token kernel, for `bench --profile`. Every role that is timed has a clock as a
// template argument, and the usual kernel the one that does nothing: not an instruction is added
// to it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "examples/pythia/model/cuda_token_times.hpp"

namespace pythia {

/// Not timed.
struct NoTokenClock {
  __device__ __forceinline__ explicit NoTokenClock(TokenTimes*) {}
  __device__ __forceinline__ void restart() {}
  __device__ __forceinline__ void start_multiplying() {}
  __device__ __forceinline__ void multiplied(int /*kind*/) {}
  __device__ __forceinline__ void waited(int /*vector*/) {}
  __device__ __forceinline__ void attended() {}
  __device__ __forceinline__ void finish_multiplying() {}
  __device__ __forceinline__ void finish_attending() {}
};

/// The lane of a warp that keeps the sum at that offset in TokenTimes.
constexpr int lane_of(std::size_t offset) {
  return static_cast<int>(offset / sizeof(std::uint64_t));
}

/// Adds the clocks since its last stamp to what the warp has been doing. A lane of the warp keeps
/// each sum until the end, so that all of them cost one register and a stamp nothing but
/// arithmetic: sums in memory would hold up the releases that pass results to other warps.
class TokenClock {
 public:
  /// times: [blocks], zero before the first token.
  __device__ __forceinline__ explicit TokenClock(TokenTimes* times) : times_(times) {}

  __device__ __forceinline__ void restart() { last_ = clocks(); }
  __device__ __forceinline__ void start_multiplying() {
    add(kNanoseconds, -nanoseconds());
    restart();
  }
  __device__ __forceinline__ void multiplied(int kind) { spent(kMultiplying + kind); }
  __device__ __forceinline__ void waited(int vector) { spent(kWaiting + vector); }
  __device__ __forceinline__ void attended() { spent(kAttending); }
  __device__ __forceinline__ void finish_multiplying() {
    add(kNanoseconds, nanoseconds());
    add(kWarps, 1);
    leave();
  }
  /// By all warps; the first one speaks for them.
  __device__ __forceinline__ void finish_attending() {
    add(kAttended, 1);
    if (threadIdx.x < 32) leave();
  }

 private:
  static constexpr int kMultiplying = lane_of(offsetof(TokenTimes, multiplying));
  static constexpr int kWaiting = lane_of(offsetof(TokenTimes, waiting));
  static constexpr int kNanoseconds = lane_of(offsetof(TokenTimes, nanoseconds));
  static constexpr int kWarps = lane_of(offsetof(TokenTimes, warps));
  static constexpr int kAttending = lane_of(offsetof(TokenTimes, attending));
  static constexpr int kAttended = lane_of(offsetof(TokenTimes, attended));
  static constexpr int kSums = kAttended + 1;
  static_assert(kSums <= 32 && kSums * sizeof(std::uint64_t) <= sizeof(TokenTimes));

  // A token takes less than what 32 bits of these go round in.
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
  __device__ __forceinline__ void add(int lane, std::uint32_t value) {
    if (static_cast<int>(threadIdx.x % 32) == lane) sum_ += value;
  }
  __device__ __forceinline__ void spent(int lane) {
    const std::uint32_t now = clocks();
    add(lane, now - last_);
    last_ = now;
  }
  __device__ __forceinline__ void leave() {
    const unsigned lane = threadIdx.x % 32;
    if (lane >= kSums) return;
    auto* const sums = reinterpret_cast<std::uint64_t*>(times_ + blockIdx.x);
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(sums + lane),
                 "l"(std::uint64_t{sum_})
                 : "memory");
  }

  TokenTimes* times_;
  std::uint32_t sum_ = 0;  ///< the one of this lane's place
  std::uint32_t last_ = 0;
};

}  // namespace pythia
