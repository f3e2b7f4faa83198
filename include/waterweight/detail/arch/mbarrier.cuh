// mbarriers in shared memory: how TMA says that bytes have landed and readers that a buffer is
// free. For sm_90 and newer. Addresses are 32-bit shared-memory addresses.
//
// A barrier's phase completes when its arrivals and its expected bytes are all in; waiting for
// parity p returns once the phase of that parity has completed. A fresh barrier is in phase 0, so
// waiting for parity 1 returns at once: the first round of "is the buffer free" needs no arrival.
#pragma once

#include <cstdint>

#include <waterweight/config.hpp>
#include <waterweight/detail/arch/named_barrier.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// What keeps an arrival behind loads from shared memory: an arrival does not wait for those under
/// way, and who waits for it could overwrite what they are to read. Added to the address of a
/// barrier, this does: it is made of a loaded word, and zero. `small` is less than 65536, which the
/// compiler must not know.
__device__ __forceinline__ std::uint32_t after_loading(std::uint32_t word, int small) {
  std::uint32_t zero;
  asm volatile("shr.u32 %0, %1, 16;" : "=r"(zero) : "r"(small));
  return word & zero;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// Arrives and announces `bytes` more that TMA will report.
__device__ __forceinline__ void mbarrier_arrive_expect(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrives at the barrier of the same address in block `rank` of the cluster. For buffers that
/// were only read: what the calling thread wrote is not made visible there, which would take a
/// fence of the whole device.
__device__ __forceinline__ void mbarrier_arrive_at(std::uint32_t barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

__device__ __forceinline__ void mbarrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}

__device__ __forceinline__ int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
