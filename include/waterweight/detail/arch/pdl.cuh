// Programmatic dependent launch (PTX ISA, griddepcontrol; sm_90 and newer, nothing elsewhere).
#pragma once

#include <waterweight/config.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// Waits until the kernels this one depends on have finished and their writes are visible. What a
/// kernel does before must touch nothing that a kernel still under way may write. Returns at once
/// when the launch carries no programmatic dependency.
__device__ __forceinline__ void wait_for_dependencies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel of the stream start as soon as every block of this one has said so (or has
/// ended): its blocks move in where this kernel's leave room, and may request their weights.
__device__ __forceinline__ void launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

WATERWEIGHT_ARCH_NAMESPACE_END
