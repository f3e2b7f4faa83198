// How a decode step of a model with parallel residuals divides the card.
#pragma once

#include <waterweight/types.hpp>

#include "examples/pythia/io/config.hpp"
#include "examples/pythia/model/engine.hpp"

namespace pythia {

/// SMs of the MLP and of what runs beside it: QKV, attention and dense.
struct StepFork {
  int mlp_sms = 0;         ///< 0: one after another, each on all SMs
  int projection_sms = 0;  ///< of QKV and dense
  /// Attention by the kernel that streams heads through as many blocks. 0: it is not told of the
  /// MLP, and its clusters go wherever there is room.
  int attention_blocks = 0;
};

/// Where it pays, by what steps of Pythia-2.8B took on H200 (us, divided and not): with FP16
/// weights one sequence 1619 and 2036; with INT8 weights 2 sequences 1431 and 1534, 8 1840 and
/// 2090, 16 2103 and 2369, 32 2990 and 3104, 64 4403 and 4436.
inline StepFork step_fork(const Config& config, WeightType weights, int batch,
                          const waterweight::device_info& device) {
  constexpr int kFew = 8, kSome = 16, kMany = 64;
  const int sms = device.sm_count;
  if (!config.parallel_residual || device.compute_capability != 90) return {};
  if (weights == WeightType::fp16 && batch > kFew) return {};
  StepFork fork;
  if (batch <= kFew) {
    fork.mlp_sms = sms * 546 / 1000;
  } else if (batch <= kSome) {
    // With more sequences attention has the more to read. 16 of them have 512 heads in Pythia-2.8B,
    // six for each of 86 blocks with few left over: a step takes 1884 us, with 74 blocks 1977, with
    // 92 2050, with clusters beside 66 SMs of MLP 1954.
    fork.mlp_sms = sms * 350 / 1000;
    fork.attention_blocks = sms - fork.mlp_sms;
  } else {
    // Blocks of attention that find no SM start when the MLP has ended: 32 sequences 2587 us, 64
    // 4104, with clusters 2732 and 4213.
    fork.mlp_sms = sms / 2;
    if (batch <= kMany) fork.attention_blocks = sms;
  }
  fork.projection_sms = sms - fork.mlp_sms;
  return fork;
}

}  // namespace pythia
