// CUDA's own names for what the emulator does. The toolkit's headers bring the types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tests/emulator/instructions.hpp"
#include "tests/emulator/launch.hpp"
#include "tests/emulator/warp.hpp"

// The sources that follow are compiled as nvcc would for sm_90.
#define __CUDACC__
#define __CUDA_ARCH__ 900
#define __CUDA_ARCH_LIST__ 900
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

inline const emulator::Index &threadIdx = emulator::thread_index, &blockIdx = emulator::block_index,
                             &gridDim = emulator::grid_size, &blockDim = emulator::block_size;

inline void __syncthreads() { emulator::bar_sync(0, static_cast<int>(blockDim.x)); }
inline void __syncwarp(unsigned = ~0u) { emulator::together(emulator::kSync, {}); }
inline void __threadfence() {}
inline void __nanosleep(unsigned) {
  emulator::current->state = emulator::FiberState::asleep;
  emulator::sleepers.push_back(emulator::current);
  emulator::leave();
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::shuffle(value, emulator::current->lane ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int by) {
  const int lane = emulator::current->lane;
  return emulator::shuffle(value, lane + by < emulator::kWarpLanes ? lane + by : lane);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int by) {
  const int lane = emulator::current->lane;
  return emulator::shuffle(value, lane >= by ? lane - by : lane);
}
template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return emulator::shuffle(value, from % emulator::kWarpLanes);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  const auto* const table = emulator::together(emulator::kBallot, {predicate != 0 ? 1u : 0u});
  unsigned votes = 0;
  for (int lane = 0; lane < emulator::kWarpLanes; ++lane) votes |= table[lane][0] << lane;
  return votes;
}
inline int __any_sync(unsigned warp, int predicate) { return __ballot_sync(warp, predicate) != 0; }
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  return emulator::reduce(value, [](unsigned a, unsigned b) { return std::max(a, b); });
}
inline unsigned __reduce_min_sync(unsigned, unsigned value) {
  return emulator::reduce(value, [](unsigned a, unsigned b) { return std::min(a, b); });
}
inline unsigned __reduce_xor_sync(unsigned, unsigned value) {
  return emulator::reduce(value, [](unsigned a, unsigned b) { return a ^ b; });
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selectors) {
  const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned selector = selectors >> 4 * i;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (selector & 7)) & 0xff;
    if ((selector & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    result |= byte << 8 * i;
  }
  return result;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline int __float2int_rn(float value) {
  if (std::isnan(value)) return 0;
  return static_cast<int>(std::lrint(std::clamp(value, -2147483648.0f, 2147483520.0f)));
}
inline unsigned long long __double2ull_rn(double value) {
  return static_cast<unsigned long long>(std::llrint(value));
}
template <class T>
T __ldg(const T* source) {
  return *source;
}
template <class T>
T __ldcg(const T* source) {
  return *source;
}
template <class T>
T atomicAdd(T* counter, T value) {
  return emulator::read_and_update(counter, [&](T before) { return before + value; });
}
inline unsigned atomicOr(unsigned* bits, unsigned value) {
  return emulator::read_and_update(bits, [&](unsigned before) { return before | value; });
}
inline std::size_t __cvta_generic_to_shared(const void* address) {
  return reinterpret_cast<std::size_t>(address);
}
using std::isfinite;
using std::max;
using std::min;

// What includes the kernel also launches it, which nobody here does.
template <class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t*, Arguments&&...) {
  return cudaErrorNotSupported;
}
