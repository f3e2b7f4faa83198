// Thread block clusters (sm_90 and newer; PTX ISA, "Cluster of Cooperative Thread Arrays"): their
// barrier and stores to the shared memory of another block.
#pragma once

#include <cstdint>

#include <waterweight/config.hpp>
#include <waterweight/detail/arch/mma.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// Every thread of every block arrives once per phase; an exited thread counts as arrived. Of what
/// was written before only mbarriers made with mbarrier_init_fence are sure to be visible after the
/// wait.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
/// The same for everything, global memory too. Waits for this thread's own stores to get there.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// Which cluster of the grid this block belongs to, along x.
__device__ __forceinline__ int cluster_index() {
  int index;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
  return index;
}

/// Sends floats to an array in the shared memory of block `rank` of the cluster. Each arrives as 4
/// bytes at an mbarrier of that block, which is all the synchronisation there is: whoever waits for
/// the barrier sees them.
class remote_floats {
 public:
  /// array, barrier: where this block has what is meant in the other one.
  __device__ __forceinline__ remote_floats(const void* array, const std::uint64_t* barrier,
                                           int rank) {
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(array_)
        : "r"(shared_address(array)), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(barrier_)
        : "r"(shared_address(barrier)), "r"(rank));
  }

  __device__ __forceinline__ void send(int index, float value) const {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
            array_ + 4 * index),
        "f"(value), "r"(barrier_)
        : "memory");
  }

 private:
  std::uint32_t array_, barrier_;
};

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
