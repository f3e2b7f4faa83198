// Time stamps of the token kernel, for `bench --profile`. Every role that is timed has a clock as a
// template argument, and the usual kernel the one that does nothing: not an instruction is added
// to it.
#pragma once

#include <cstdint>

#include "examples/pythia/model/cuda_token_times.hpp"

namespace pythia {

/// Not timed.
struct NoTokenClock {
  __device__ __forceinline__ explicit NoTokenClock(TokenTimes*) {}
  __device__ __forceinline__ void restart() {}
  __device__ __forceinline__ void multiplied(int /*kind*/) {}
  __device__ __forceinline__ void waited(int /*vector*/) {}
  __device__ __forceinline__ void attended() {}
  __device__ __forceinline__ void finish_multiplying() {}
  __device__ __forceinline__ void finish_attending() {}
};

/// Adds the clocks since its last stamp to what the warp has been doing. The first lane of a warp
/// speaks for it; nobody waits for the additions.
class TokenClock {
 public:
  /// times: [blocks], zero before the first token.
  __device__ __forceinline__ explicit TokenClock(TokenTimes* times)
      : times_(times + blockIdx.x), begin_(nanoseconds()), last_(clocks()) {}

  __device__ __forceinline__ void restart() { last_ = clocks(); }
  __device__ __forceinline__ void multiplied(int kind) { spent(times_->multiplying + kind); }
  __device__ __forceinline__ void waited(int vector) { spent(times_->waiting + vector); }
  __device__ __forceinline__ void attended() {
    if (threadIdx.x / 32 == 0) spent(&times_->attending);
  }
  __device__ __forceinline__ void finish_multiplying() {
    add(&times_->nanoseconds, nanoseconds() - begin_);
    add(&times_->warps, 1);
  }
  __device__ __forceinline__ void finish_attending() {
    if (threadIdx.x / 32 == 0) add(&times_->attended, 1);
  }

 private:
  __device__ __forceinline__ static std::uint32_t clocks() {
    std::uint32_t value;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(value)::"memory");
    return value;
  }
  __device__ __forceinline__ static std::uint64_t nanoseconds() {
    std::uint64_t value;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(value)::"memory");
    return value;
  }
  __device__ __forceinline__ static void add(std::uint64_t* sum, std::uint64_t value) {
    if (threadIdx.x % 32 == 0) {
      asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(sum), "l"(value) : "memory");
    }
  }
  __device__ __forceinline__ void spent(std::uint64_t* sum) {
    const std::uint32_t now = clocks();
    add(sum, now - last_);  // a token takes less than the 32 bits go round
    last_ = now;
  }

  TokenTimes* times_;
  std::uint64_t begin_;
  std::uint32_t last_;
};

}  // namespace pythia
