// Bulk copies from global to shared memory that complete on an mbarrier (sm_90 and newer; PTX ISA,
// "cp.async.bulk" and "mbarrier"), and the L2 prefetch of the same shape. For older architectures
// the functions do nothing: kernels that need them are not launched there.
#pragma once

#include <cstdint>

#include <waterweight/config.hpp>
#include <waterweight/detail/arch/mma.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define WATERWEIGHT_SM90_ASM_(...) asm volatile(__VA_ARGS__)
#else
#define WATERWEIGHT_SM90_ASM_(...) static_cast<void>(0)
#endif

/// An mbarrier in shared memory whose phases end after `arrivals` arrivals and all expected bytes.
/// One thread initialises it; others may use it after mbarrier_init_fence and a block barrier.
__device__ __forceinline__ void mbarrier_init([[maybe_unused]] std::uint64_t* barrier,
                                              [[maybe_unused]] int arrivals) {
  WATERWEIGHT_SM90_ASM_("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                        "r"(arrivals)
                        : "memory");
}

/// Makes this thread's mbarrier_init visible to the copy engine.
__device__ __forceinline__ void mbarrier_init_fence() {
  WATERWEIGHT_SM90_ASM_("fence.mbarrier_init.release.cluster;" ::: "memory");
  WATERWEIGHT_SM90_ASM_("fence.proxy.async.shared::cta;" ::: "memory");
}

/// One arrival: what this thread wrote before is visible to who waits for the phase.
__device__ __forceinline__ void mbarrier_arrive([[maybe_unused]] std::uint64_t* barrier) {
  WATERWEIGHT_SM90_ASM_("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier))
                        : "memory");
}

/// One arrival, and `bytes` more to come by copies before the phase may end.
__device__ __forceinline__ void mbarrier_arrive_expect([[maybe_unused]] std::uint64_t* barrier,
                                                       [[maybe_unused]] std::uint32_t bytes) {
  WATERWEIGHT_SM90_ASM_(
      "mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
      : "memory");
}

/// Waits for the end of the phase of this parity, 0 for the first; what the copies wrote is then
/// visible.
__device__ __forceinline__ void mbarrier_wait([[maybe_unused]] std::uint64_t* barrier,
                                              [[maybe_unused]] std::uint32_t parity) {
  WATERWEIGHT_SM90_ASM_(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

/// The same, but gives up after about `nanoseconds`: whether the phase has ended.
__device__ __forceinline__ bool mbarrier_wait_for([[maybe_unused]] std::uint64_t* barrier,
                                                  [[maybe_unused]] std::uint32_t parity,
                                                  [[maybe_unused]] std::uint32_t nanoseconds) {
  std::uint32_t done = 1;
  WATERWEIGHT_SM90_ASM_(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared.b64 p, [%1], %2, %3;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity), "r"(nanoseconds)
      : "memory");
  return done != 0;
}

/// Whether the phase has ended, at once.
__device__ __forceinline__ bool mbarrier_ended([[maybe_unused]] std::uint64_t* barrier,
                                               [[maybe_unused]] std::uint32_t parity) {
  std::uint32_t ended = 1;
  WATERWEIGHT_SM90_ASM_(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return ended != 0;
}

/// Starts a copy of `bytes` (a multiple of 16, both addresses 16-byte aligned).
__device__ __forceinline__ void bulk_copy([[maybe_unused]] void* shared,
                                          [[maybe_unused]] const void* global,
                                          [[maybe_unused]] std::uint32_t bytes,
                                          [[maybe_unused]] std::uint64_t* barrier) {
  WATERWEIGHT_SM90_ASM_(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

/// An L2 policy for what is read once: it makes room for others first.
__device__ __forceinline__ std::uint64_t evict_first_policy() {
  std::uint64_t policy = 0;
  WATERWEIGHT_SM90_ASM_("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// The same copy under an L2 policy.
__device__ __forceinline__ void bulk_copy([[maybe_unused]] void* shared,
                                          [[maybe_unused]] const void* global,
                                          [[maybe_unused]] std::uint32_t bytes,
                                          [[maybe_unused]] std::uint64_t* barrier,
                                          [[maybe_unused]] std::uint64_t policy) {
  WATERWEIGHT_SM90_ASM_(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

/// Asks for `bytes` (as above) to be brought into L2. Changes nothing but time.
__device__ __forceinline__ void bulk_prefetch([[maybe_unused]] const void* global,
                                              [[maybe_unused]] std::uint32_t bytes) {
  WATERWEIGHT_SM90_ASM_("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes));
}

#undef WATERWEIGHT_SM90_ASM_

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
