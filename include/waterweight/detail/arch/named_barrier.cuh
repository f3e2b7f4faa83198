// Barriers among some of a block's warps.
#pragma once

#include <waterweight/config.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Barrier `id` (1 to 15) among `threads` threads of the block: whole warps.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// The same without waiting: what this thread wrote before is there for those who wait.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
