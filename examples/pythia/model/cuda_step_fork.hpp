// How a decode step of a model with parallel residuals divides the card.
#pragma once

#include <waterweight/types.hpp>

#include "examples/pythia/io/config.hpp"
#include "examples/pythia/model/engine.hpp"

namespace pythia {

/// SMs of the MLP and of what runs beside it: QKV, attention and dense.
struct StepFork {
  int mlp_sms = 0;  ///< 0: one after another, each on all SMs
  int attention_sms = 0;
};

/// Where it pays, by what steps of Pythia-2.8B took on H200 (us, divided and not): with FP16
/// weights one sequence 1619 and 2036; with INT8 weights 2 sequences 1431 and 1534, 8 1840 and
/// 2090, 16 2103 and 2369, 32 2990 and 3104, 64 4403 and 4436.
inline StepFork step_fork(const Config& config, WeightType weights, int batch,
                          const waterweight::device_info& device) {
  constexpr int kFew = 8;
  if (!config.parallel_residual || device.compute_capability != 90) return {};
  if (weights == WeightType::fp16 && batch > kFew) return {};
  // With many sequences attention has the more to read.
  const int mlp = device.sm_count * (batch <= kFew ? 546 : 500) / 1000;
  return {mlp, device.sm_count - mlp};
}

}  // namespace pythia
