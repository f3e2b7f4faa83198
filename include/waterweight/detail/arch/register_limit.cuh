// Warpgroups of a block pass registers to each other (PTX ISA, "setmaxnreg"). For sm_90a alone.
#pragma once

#include <waterweight/config.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Gives registers of the calling warpgroup back, or waits for as many as others have given.
template <int Registers, bool More>
__device__ __forceinline__ void set_register_limit() {
  if constexpr (More) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
  }
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
