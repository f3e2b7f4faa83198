// Asks the CUDA runtime whether there is a device to run on.
#include <cuda_runtime.h>

#include <string>

#include "examples/pythia/io/error.hpp"
#include "examples/pythia/model/cuda_device.hpp"

namespace pythia {
namespace {

constexpr int kOldestArchitecture = 8;  // compute capability 8.0: mma.sync with bf16, cp.async

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

CudaStatus query_cuda() {
  CudaStatus status;
  int driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0) {
    status.driver = version_text(driver);
  }
  if (driver == 0) {
    status.reason = "no CUDA device: no NVIDIA driver is installed";
    return status;
  }
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    status.reason = std::string("no CUDA device: ") +
                    (error != cudaSuccess ? cudaGetErrorString(error) : "none was found");
    return status;
  }
  cudaDeviceProp properties;
  const cudaError_t described = cudaGetDeviceProperties(&properties, 0);
  if (described != cudaSuccess) {
    status.reason = std::string("no CUDA device: ") + cudaGetErrorString(described);
    return status;
  }
  status.name = properties.name;
  status.usable = properties.major >= kOldestArchitecture;
  if (!status.usable) {
    status.reason = "no CUDA device: " + status.name + " has compute capability " +
                    std::to_string(properties.major) + "." + std::to_string(properties.minor) +
                    ", expected at least 8.0";
  }
  return status;
}

void require_cuda_device() {
  const CudaStatus status = query_cuda();
  if (!status.usable) throw Error("--device cuda: " + status.reason);
}

}  // namespace pythia
