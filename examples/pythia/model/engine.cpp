// Picks the engine for the device that was asked for.
#include "examples/pythia/model/engine.hpp"

#include "examples/pythia/model/cuda_engine.hpp"
#include "examples/pythia/model/host_engine.hpp"

namespace pythia {

std::unique_ptr<Engine> make_engine(const ModelSource& source, const EngineOptions& options) {
  return options.device == DeviceType::cuda ? make_cuda_engine(source, options)
                                            : make_host_engine(source, options);
}

}  // namespace pythia
