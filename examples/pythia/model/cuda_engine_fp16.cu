// The engine with fp16 activations.
#include <cuda_fp16.h>

#include "examples/pythia/model/cuda_engine_factory.hpp"
#include "examples/pythia/model/cuda_engine_impl.cuh"

namespace pythia {

std::unique_ptr<Engine> make_fp16_engine(const ModelSource& source, const EngineOptions& options,
                                         const std::string& device_name) {
  return std::make_unique<CudaEngine<__half>>(source, options, device_name);
}

}  // namespace pythia
