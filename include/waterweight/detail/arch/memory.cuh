// Loads that say how they will be used, and asynchronous copies to shared memory.
#pragma once

#include <cstdint>

#include <waterweight/config.hpp>
#include <waterweight/detail/arch/mma.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// 16 bytes that are read once and never written while the kernel runs: weights. They stay out of
/// L1, where they would only push the activations out.
__device__ __forceinline__ uint4 load_streaming(const void* pointer) {
  uint4 value;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(pointer));
  return value;
}

/// 16 bytes from L2, past an L1 that may hold a version from before the current kernel.
__device__ __forceinline__ uint4 load_l2(const void* pointer) {
  return __ldcg(static_cast<const uint4*>(pointer));
}

/// 16 bytes by an ordinary load, which stays behind what is before it in the program, as
/// wait_for_earlier_kernels().
__device__ __forceinline__ uint4 load_in_order(const void* pointer) {
  uint4 value;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(pointer)
               : "memory");
  return value;
}

/// Asks for the cache line of `pointer` to be brought into L2. Changes nothing but time.
__device__ __forceinline__ void prefetch_l2(const void* pointer) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(pointer));
}

/// Four fp32 words at a 16-byte aligned address of shared memory.
__device__ __forceinline__ float4 load_shared(std::uint32_t address) {
  float4 value;
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(address)
               : "memory");
  return value;
}

/// 16 bytes at an aligned address of shared memory. Kept in the order of the program: loads of
/// several steps are under way during one.
__device__ __forceinline__ uint4 load_shared_in_order(std::uint32_t address) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}

/// One fp32 word to an address of shared memory.
__device__ __forceinline__ void store_shared(std::uint32_t address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

/// Two to an 8-byte aligned one.
__device__ __forceinline__ void store_shared(std::uint32_t address, float2 value) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(value.x), "f"(value.y)
               : "memory");
}

/// Starts a copy of 16 bytes of which the first `source_bytes` (0 to 16) come from global memory
/// and the rest are zeros. Both addresses 16-byte aligned; with 0 the source is not touched.
__device__ __forceinline__ void cp_async_16(std::uint32_t shared, const void* global,
                                            int source_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(source_bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int source_bytes) {
  cp_async_16(shared_address(shared), global, source_bytes);
}

/// The same where `active`; elsewhere nothing happens.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int source_bytes,
                                            bool active) {
  asm volatile(
      "{\n"
      ".reg .pred active;\n"
      "setp.ne.b32 active, %3, 0;\n"
      "@active cp.async.cg.shared.global [%0], [%1], 16, %2;\n"
      "}\n" ::"r"(shared_address(shared)),
      "l"(global), "r"(source_bytes), "r"(static_cast<int>(active))
      : "memory");
}

/// The first one's like for one 4-byte word: `present` false writes a zero.
__device__ __forceinline__ void cp_async_4(void* shared, const void* global, bool present) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(present ? 4 : 0)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most `Pending` of this thread's committed groups are still under way.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
