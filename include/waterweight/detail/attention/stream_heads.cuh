// Which heads a block of stream_decode_kernel goes through: two by its number, then whichever are
// left when it comes to ask. SMs do not get the same share of the memory, and a fixed division has
// all wait for the slowest.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/arch/dependent_launch.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// One warp asks, all others are told. Made alike by every thread of a block.
struct stream_heads {
  static constexpr int kRemembered = 16;
  struct storage {
    std::uint64_t told[kRemembered];
    int head[kRemembered];
  };

  storage* shared;
  int heads;
  unsigned* counters;  ///< heads asked for, blocks that have done so for the last time; zero

  /// By one thread, before the others use it.
  __device__ __forceinline__ void init() const {
    for (int i = 0; i < kRemembered; ++i) mbarrier_init(shared->told + i, 1);
  }

  /// The block's head number i, or -1 where it has no more; waits until that is known. Whoever
  /// copies head i tells of head i + 2 only then: at most kRemembered - 2 heads may lie between the
  /// one copied and the earliest that another warp still asks for.
  __device__ __forceinline__ int operator[](int i) const {
    mbarrier_wait(shared->told + i % kRemembered, static_cast<std::uint32_t>(i / kRemembered) & 1u);
    return shared->head[i % kRemembered];
  }

  /// By the warp that asks: calls copy(head) for each of the block's.
  template <class F>
  __device__ __forceinline__ void hand_out(const F& copy) const {
    const int grid = static_cast<int>(gridDim.x);
    int now = blockIdx.x, next = within(now + grid);
    tell(0, now);
    tell(1, next);
    int taken = 0;
#pragma unroll 1
    for (int i = 0; now >= 0; ++i) {
      if (i > 0) taken = count(counters);  // the answer comes while copies are started
      copy(now);
      if (i == 0) {
        wait_for_earlier_kernels();  // which may count there as well
        taken = count(counters);
      }
      now = next;
      next = within(2 * grid + __shfl_sync(0xffffffffu, taken, 0));
      tell(i + 2, next);
    }
    if (threadIdx.x % 32 == 0 && count(counters + 1) == grid - 1) counters[0] = counters[1] = 0;
  }

 private:
  __device__ __forceinline__ int within(int head) const { return head < heads ? head : -1; }
  __device__ __forceinline__ void tell(int i, int head) const {
    if (threadIdx.x % 32 != 0) return;
    shared->head[i % kRemembered] = head;
    mbarrier_arrive(shared->told + i % kRemembered);
  }
  /// What the first lane adds one to; 0 in the others.
  static __device__ __forceinline__ int count(unsigned* counter) {
    return threadIdx.x % 32 == 0 ? static_cast<int>(atomicAdd(counter, 1u)) : 0;
  }
};

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
