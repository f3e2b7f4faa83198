// Programmatic dependent launch (sm_90 and newer; PTX ISA, "griddepcontrol"). A kernel launched
// with the attribute of launch_options may start while the one before it in the stream still runs.
#pragma once

#include <waterweight/config.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// Once every block has called it (or ended), the next kernel may start, if it was launched so.
__device__ __forceinline__ void launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;");
}

/// Until here nothing that earlier kernels write may be relied on. Returns when they have ended and
/// their writes are visible.
__device__ __forceinline__ void wait_for_earlier_kernels() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

#endif

/// How a kernel begins that detail::launch_following() launches: returns when earlier kernels have
/// ended and their writes are visible, and lets the next kernel start. Called by every thread.
__device__ __forceinline__ void follow_earlier_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  wait_for_earlier_kernels();
  launch_dependents();
#endif
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
