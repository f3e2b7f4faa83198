// One factory per activation type: each is a translation unit of its own, so that they compile side
// by side.
#pragma once

#include <memory>
#include <string>

#include "examples/pythia/model/engine.hpp"

namespace pythia {

std::unique_ptr<Engine> make_fp16_engine(const ModelSource& source, const EngineOptions& options,
                                         const std::string& device_name);
std::unique_ptr<Engine> make_bf16_engine(const ModelSource& source, const EngineOptions& options,
                                         const std::string& device_name);

}  // namespace pythia
