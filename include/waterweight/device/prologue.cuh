// Prologue functors: how the activations of a GEMV reach the multiplying lanes.
//
// A prologue offers
//   __device__ void prepare(void* shared);           // by all threads of the block, once per call
//   __device__ void load16(int m, int k, uint4 (&x)[2]) const;   // X[m, k .. k+15] as T
// with k a multiple of 16. `prepare` ends with everything load16 needs visible to the block.
#pragma once

#include <cstdint>

#include <waterweight/config.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// Activations taken from global memory as they are: X[M, K] of T, rows `ld` apart, 16-byte
/// aligned. Every block reads all of X, which L1 and L2 serve.
template <class T>
struct plain_prologue {
  const T* x;
  std::int64_t ld;

  __device__ void prepare(void*) const {}

  __device__ __forceinline__ void load16(int m, int k, uint4 (&out)[2]) const {
    const uint4* row = reinterpret_cast<const uint4*>(x + m * ld + k);
    out[0] = row[0];
    out[1] = row[1];
  }
};

WATERWEIGHT_ARCH_NAMESPACE_END
