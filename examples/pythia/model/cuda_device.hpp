// Is there a GPU, and which? Compiles, and answers, in host-only builds too.
#pragma once

#include <string>

namespace pythia {

struct CudaStatus {
  bool usable = false;
  std::string reason;  ///< why not: "no CUDA device: ..." or that the build has no CUDA
  std::string name;    ///< of the device, when usable
  std::string driver;  ///< the newest CUDA version the driver supports, "13.0"
};

/// Asks the runtime about device 0. Does not throw.
CudaStatus query_cuda();

/// Throws Error with the reason when there is no usable GPU.
void require_cuda_device();

}  // namespace pythia
