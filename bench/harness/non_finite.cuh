// Counts what a kernel forgot to write in a poisoned buffer, or computed out of it.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bench/harness/device_buffer.cuh"

namespace bench {

template <class T>
__global__ void non_finite_kernel(const T* data, std::size_t count, unsigned long long* found) {
  unsigned long long mine = 0;
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    mine += !isfinite(static_cast<float>(data[i]));
  }
  if (mine > 0) atomicAdd(found, mine);
}

/// Throws when one of `count` elements is a NaN or an infinity.
template <class T>
void expect_finite(const T* data, std::size_t count, cudaStream_t stream) {
  DeviceBuffer<unsigned long long> found(std::vector<unsigned long long>{0});
  non_finite_kernel<<<1024, 256, 0, stream>>>(data, count, found.data());
  check(cudaGetLastError(), "looking for non-finite elements");
  check(cudaStreamSynchronize(stream), "looking for non-finite elements");
  const unsigned long long bad = download(found.data(), 1)[0];
  if (bad > 0) {
    throw std::runtime_error("wrong result: " + std::to_string(bad) + " of " +
                             std::to_string(count) + " elements are not written or not finite");
  }
}

}  // namespace bench
