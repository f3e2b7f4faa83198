// How the activations of a block_gemv arrive.
//
// An activation source offers load16(m, k, uint4 (&out)[2]): X[m, k .. k + 15] as T, k a multiple
// of 16.
#pragma once

#include <cstdint>

#include <waterweight/config.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// X[M, K] of T in global memory, rows `ld` apart, 16-byte aligned. L1 and L2 serve the reuse.
template <class T>
struct global_activations {
  const T* x;
  std::int64_t ld;

  __device__ __forceinline__ void load16(int m, int k, uint4 (&out)[2]) const {
    const uint4* row = reinterpret_cast<const uint4*>(x + m * ld + k);
    out[0] = row[0];
    out[1] = row[1];
  }
};

WATERWEIGHT_ARCH_NAMESPACE_END
