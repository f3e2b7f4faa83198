// Picks the instantiation for the activation type.
#include "examples/pythia/model/cuda_engine.hpp"

#include "examples/pythia/model/cuda_device.hpp"
#include "examples/pythia/model/cuda_engine_factory.hpp"

namespace pythia {

std::unique_ptr<Engine> make_cuda_engine(const ModelSource& source, const EngineOptions& options) {
  require_cuda_device();
  const std::string name = query_cuda().name;
  return options.activations == ActivationType::bf16 ? make_bf16_engine(source, options, name)
                                                     : make_fp16_engine(source, options, name);
}

}  // namespace pythia
