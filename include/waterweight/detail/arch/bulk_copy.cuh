// Bulk asynchronous copies from global to shared memory and the barriers that count their bytes
// (PTX ISA, "cp.async.bulk" and "mbarrier"). sm_90 and newer: elsewhere the functions do nothing.
#pragma once

#include <cstdint>

#include <waterweight/config.hpp>
#include <waterweight/detail/arch/mma.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define WATERWEIGHT_HAS_BULK_COPY_ 1
#else
#define WATERWEIGHT_HAS_BULK_COPY_ 0
#endif

/// Makes `barrier` (shared memory) one whose phases end with `arrivals` arrivals and all the bytes
/// they announced. Before anybody else uses it: mbarrier_publish(), then a barrier of the block.
__device__ __forceinline__ void mbarrier_init([[maybe_unused]] std::uint64_t* barrier,
                                              [[maybe_unused]] unsigned arrivals) {
#if WATERWEIGHT_HAS_BULK_COPY_
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
#endif
}

__device__ __forceinline__ void mbarrier_publish() {
#if WATERWEIGHT_HAS_BULK_COPY_
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ __forceinline__ void mbarrier_arrive([[maybe_unused]] std::uint64_t* barrier) {
#if WATERWEIGHT_HAS_BULK_COPY_
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

/// Arrives and announces `bytes` of copies.
__device__ __forceinline__ void mbarrier_expect([[maybe_unused]] std::uint64_t* barrier,
                                                [[maybe_unused]] int bytes) {
#if WATERWEIGHT_HAS_BULK_COPY_
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}

/// Returns once the phase of this parity has ended: the first one has parity 0.
__device__ __forceinline__ void mbarrier_wait([[maybe_unused]] std::uint64_t* barrier,
                                              [[maybe_unused]] unsigned parity) {
#if WATERWEIGHT_HAS_BULK_COPY_
  unsigned done;
  do {
    asm volatile(
        "{\n\t.reg .pred p;\n\t"
        "mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
#endif
}

/// An L2 policy for what is read once: it makes room for others first.
__device__ __forceinline__ std::uint64_t evict_first_policy() {
  std::uint64_t policy = 0;
#if WATERWEIGHT_HAS_BULK_COPY_
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}

/// Starts a copy of `bytes` (a multiple of 16, both addresses 16-byte aligned) that `barrier` counts.
__device__ __forceinline__ void bulk_copy([[maybe_unused]] void* shared,
                                          [[maybe_unused]] const void* global,
                                          [[maybe_unused]] int bytes,
                                          [[maybe_unused]] std::uint64_t* barrier,
                                          [[maybe_unused]] std::uint64_t policy) {
#if WATERWEIGHT_HAS_BULK_COPY_
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
#endif
}

#undef WATERWEIGHT_HAS_BULK_COPY_

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
