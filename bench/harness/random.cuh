// Random data made on the device. Never zeros: arithmetic on zeros draws less power and runs
// faster.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "bench/harness/check.hpp"

namespace bench {

/// 64 well-mixed bits of a counter (the finaliser of SplitMix64).
__device__ __forceinline__ std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/// Normal deviates (Box-Muller), rounded to T.
struct normal_distribution {
  float deviation;

  template <class T>
  __device__ void operator()(T& value, std::uint64_t bits) const {
    const float radius = (static_cast<float>(bits & 0xffffffffu) + 0.5f) * 0x1p-32f;
    const float angle = static_cast<float>(bits >> 32) * 0x1p-32f;
    value = static_cast<T>(deviation * sqrtf(-2.0f * __logf(fminf(radius, 0.9999999f))) *
                           __cosf(6.2831853f * angle));
  }
};

/// Every bit random.
struct bits_distribution {
  template <class T>
  __device__ void operator()(T& value, std::uint64_t bits) const {
    value = static_cast<T>(bits);
  }
};

/// Uniform in [low, high).
struct uniform_distribution {
  float low, high;

  template <class T>
  __device__ void operator()(T& value, std::uint64_t bits) const {
    value = static_cast<T>(low + (high - low) * static_cast<float>(bits >> 40) * 0x1p-24f);
  }
};

/// Uniform over the 255 values in [-127, 127].
struct int8_distribution {
  __device__ void operator()(std::int8_t& value, std::uint64_t bits) const {
    value = static_cast<std::int8_t>(static_cast<int>(((bits >> 32) * 255) >> 32) - 127);
  }
};

template <class T, class Distribution>
__global__ void fill_kernel(T* data, std::size_t count, Distribution distribution,
                            std::uint64_t seed) {
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    distribution(data[i], mix(seed + (i + 1) * 0x9e3779b97f4a7c15ull));
  }
}

/// Fills `buffer` (anything with data() and size()); equal seeds give equal data.
template <class Buffer, class Distribution>
void fill(const Buffer& buffer, Distribution distribution, std::uint64_t seed,
          cudaStream_t stream) {
  fill_kernel<<<2048, 256, 0, stream>>>(buffer.data(), buffer.size(), distribution, seed << 40);
  check(cudaGetLastError(), "filling with random data");
}

}  // namespace bench
