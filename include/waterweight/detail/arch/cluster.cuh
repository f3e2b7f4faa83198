// Thread block clusters (sm_90 and newer; PTX ISA, "Cluster of Cooperative Thread Arrays"): their
// barrier and stores to the shared memory of another block.
#pragma once

#include <cstdint>
#include <cstring>

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

/// What block `rank` of the cluster has at shared address `own` of its own: an address of the
/// cluster's shared memory. Offsets may be added to it as to `own`.
__device__ __forceinline__ std::uint32_t cluster_address(std::uint32_t own, int rank) {
  std::uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(own), "r"(rank));
  return address;
}

/// Sends 16 bytes to another block. They arrive as 16 bytes at its mbarrier `barrier`: whoever
/// waits for that sees them. Both are cluster addresses.
__device__ __forceinline__ void send_float4_to(std::uint32_t to, float4 value,
                                               std::uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32"
      " [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
      "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(barrier)
      : "memory");
}

/// The same to block `rank` of the cluster, with both addresses as in one's own block.
__device__ __forceinline__ void send_float4(std::uint32_t to, float4 value, std::uint32_t barrier,
                                            int rank) {
  send_float4_to(cluster_address(to, rank), value, cluster_address(barrier, rank));
}

/// An array in the shared memory of block `rank` of the cluster, of elements of 4 or 8 bytes. What
/// is sent arrives as so many bytes at an mbarrier of that block, which is all the synchronisation
/// there is: whoever waits for the barrier sees it.
template <class Element>
class remote_array {
 public:
  static_assert(sizeof(Element) == 4 || sizeof(Element) == 8, "one word or two");

  /// array, barrier: where this block has what is meant in the other one.
  __device__ __forceinline__ remote_array(const Element* array, const std::uint64_t* barrier,
                                          int rank)
      : array_(cluster_address(shared_address(array), rank)),
        barrier_(cluster_address(shared_address(barrier), rank)) {}

  __device__ __forceinline__ void send(int index, const Element& value) const {
    const std::uint32_t address = array_ + static_cast<std::uint32_t>(sizeof(Element)) * index;
    if constexpr (sizeof(Element) == 4) {
      std::uint32_t bits;
      memcpy(&bits, &value, sizeof(bits));
      asm volatile(
          "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
              address),
          "r"(bits), "r"(barrier_)
          : "memory");
    } else {
      std::uint64_t bits;
      memcpy(&bits, &value, sizeof(bits));
      asm volatile(
          "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(
              address),
          "l"(bits), "r"(barrier_)
          : "memory");
    }
  }

 private:
  std::uint32_t array_, barrier_;
};

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
