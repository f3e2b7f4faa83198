// Picks the engine for the device that was asked for.
#include "examples/pythia/model/engine.hpp"

#include "examples/pythia/io/error.hpp"
#include "examples/pythia/model/cuda_device.hpp"
#include "examples/pythia/model/cuda_engine.hpp"
#include "examples/pythia/model/host_engine.hpp"

namespace pythia {

#ifndef PYTHIA_HAS_CUDA
CudaStatus query_cuda() {
  CudaStatus status;
  status.reason = "no CUDA device: this build has no CUDA";
  return status;
}

void require_cuda_device() { throw Error("--device cuda: " + query_cuda().reason); }

std::unique_ptr<Engine> make_cuda_engine(const ModelSource&, const EngineOptions&) {
  require_cuda_device();
  return nullptr;
}
#endif

std::unique_ptr<Engine> make_engine(const ModelSource& source, const EngineOptions& options) {
  return options.device == DeviceType::cuda ? make_cuda_engine(source, options)
                                            : make_host_engine(source, options);
}

}  // namespace pythia
