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
  /// Attention keeps to its share, by the kernel that streams heads through its blocks. Otherwise
  /// it is not told of the MLP, and its clusters go wherever there is room.
  bool attention_streams = false;
};

/// Where it pays, by what steps of Pythia-2.8B took on H200 (us, divided and not): with FP16
/// weights one sequence 1619 and 2036; with INT8 weights 2 sequences 1431 and 1534, 8 1840 and
/// 2090, 16 2103 and 2369, 32 2990 and 3104, 64 4403 and 4436.
inline StepFork step_fork(const Config& config, WeightType weights, int batch,
                          const waterweight::device_info& device) {
  constexpr int kFew = 8, kSome = 16;
  if (!config.parallel_residual || device.compute_capability != 90) return {};
  if (weights == WeightType::fp16 && batch > kFew) return {};
  // With more sequences attention has the more to read. 16 of them have 512 heads in Pythia-2.8B,
  // six for each of 86 blocks with few left over: a step takes 1884 us, with 74 blocks 1977, with
  // 92 2050, with clusters beside 66 SMs of MLP 1954.
  const bool streams = batch > kFew && batch <= kSome;
  const int mlp = device.sm_count * (batch <= kFew ? 546 : streams ? 350 : 500) / 1000;
  return {mlp, device.sm_count - mlp, streams};
}

}  // namespace pythia
