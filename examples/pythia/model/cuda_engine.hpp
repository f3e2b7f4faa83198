// The decoder on a GPU.
#pragma once

#include <memory>

#include "examples/pythia/model/engine.hpp"

namespace pythia {

/// As make_engine(), for options.device == cuda. Throws Error when there is no usable GPU.
std::unique_ptr<Engine> make_cuda_engine(const ModelSource& source, const EngineOptions& options);

}  // namespace pythia
