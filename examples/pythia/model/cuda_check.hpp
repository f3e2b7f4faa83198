// CUDA status codes as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "examples/pythia/io/error.hpp"

namespace pythia {

/// Throws Error naming `call` when `status` is one.
inline void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  throw Error(std::string("CUDA: ") + call + ": " + cudaGetErrorString(status));
}

}  // namespace pythia
