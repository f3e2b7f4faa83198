// The engine with bf16 activations.
#include <cuda_bf16.h>

#include "examples/pythia/model/cuda_engine_factory.hpp"
#include "examples/pythia/model/cuda_engine_impl.cuh"

namespace pythia {

std::unique_ptr<Engine> make_bf16_engine(const ModelSource& source, const EngineOptions& options,
                                         const std::string& device_name) {
  return std::make_unique<CudaEngine<__nv_bfloat16>>(source, options, device_name);
}

}  // namespace pythia
