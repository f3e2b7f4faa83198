// Asks a device once what the library wants to know of it.
#pragma once

#include <cuda_runtime.h>

#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// Fills `info` for device `ordinal`. Call it once at start-up and pass the result on: no function
/// of the library queries the device by itself, and none keeps hidden state.
/// Returns the CUDA runtime's error (cudaErrorInvalidDevice, cudaErrorNoDevice, ...), or
/// cudaErrorInvalidValue when `info` is null; `info` is written on success only.
[[nodiscard]] inline cudaError_t query_device(device_info* info, int ordinal) noexcept {
  if (info == nullptr) return cudaErrorInvalidValue;
  int major = 0, minor = 0, sms = 0, shared = 0, l2 = 0;
  const struct {
    int* value;
    cudaDeviceAttr attribute;
  } queries[] = {{&major, cudaDevAttrComputeCapabilityMajor},
                 {&minor, cudaDevAttrComputeCapabilityMinor},
                 {&sms, cudaDevAttrMultiProcessorCount},
                 {&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                 {&l2, cudaDevAttrL2CacheSize}};
  for (const auto& query : queries) {
    const cudaError_t status = cudaDeviceGetAttribute(query.value, query.attribute, ordinal);
    if (status != cudaSuccess) return status;
  }
  *info = device_info{10 * major + minor, sms, shared, l2};
  return cudaSuccess;
}

WATERWEIGHT_ARCH_NAMESPACE_END
