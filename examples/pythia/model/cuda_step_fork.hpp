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
  /// QKV ends before the MLP begins; dense, when attention has ended, takes what SMs there are.
  bool qkv_ahead = false;
  /// The MLP's first blocks may move in before the kernel ahead has ended.
  bool mlp_early = false;
};

/// Where it pays, by what steps of Pythia-2.8B took on H200 (us, divided and not): with FP16
/// weights one sequence 1619 and 2036; with INT8 weights 2 sequences 1431 and 1534, 8 1840 and
/// 2090, 16 2103 and 2369, 32 2990 and 3104, 64 4403 and 4436. scored_slots: of a sequence's cache,
/// 0 where they have no scores.
inline StepFork step_fork(const Config& config, WeightType weights, int batch, int scored_slots,
                          const waterweight::device_info& device) {
  constexpr int kFew = 8, kClusters = 9, kQkvBeside = 12, kMany = 40, kStreamedSlots = 512;
  const int sms = device.sm_count;
  if (!config.parallel_residual || device.compute_capability != 90) return {};
  if (weights == WeightType::fp16 && batch > kFew) return {};
  StepFork fork;
  // The streaming kernel reads 16-bit weights, and fixed point multiplies one token. The wgmma
  // kernel's blocks fill half of the card better: 8 sequences 1508 us with 72 SMs of MLP, 1457
  // with 66.
  if (batch == 1 || weights == WeightType::fp16) {
    fork.mlp_sms = sms * 546 / 1000;
  } else if (batch <= kClusters || scored_slots == 0 || scored_slots > kStreamedSlots) {
    fork.mlp_sms = sms / 2;
  } else {
    // The more sequences, the longer attention takes beside an MLP of much the same time: in the
    // end a third of the card is enough for that. Steps, with clusters beside 66 SMs of MLP and so
    // (us): 16 sequences 1858 and 1720, 32 2724 and 2478, 64 4209 and 3861, 128 7350 and 6742; but
    // 9, with QKV beside the MLP, 1672 and 1705. QKV ahead on all SMs or beside the MLP: 10
    // sequences 1629 and 1480, 12 1701 and 1576, 16 1720 and 1813, 24 2203 and 2224.
    fork.mlp_sms = sms * (batch <= kMany ? 350 : 304) / 1000;
    fork.attention_blocks = sms - fork.mlp_sms;
    fork.qkv_ahead = batch > kQkvBeside;
  }
  // Blocks that stream heads take whole SMs: the MLP, there first, would spread over too many of
  // them. Beside clusters it gains what its start takes: 2 sequences 1382 and 1212 us, 4 1541 and
  // 1312, 8 1835 and 1739, 9 1509 and 1480; but 12, streamed, 1559 and 1732.
  fork.mlp_early = fork.attention_blocks == 0;
  fork.projection_sms = fork.qkv_ahead ? sms : sms - fork.mlp_sms;
  return fork;
}

}  // namespace pythia
