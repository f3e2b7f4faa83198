// Block-level H2O decode attention, second half: the splits of a head become its output, and the
// softmax mass of every slot is added to its score. Who leaves a full cache: h2o_evict.cuh.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/device/h2o_evict.cuh>
#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// The softmax of one query head over all its slots.
struct h2o_softmax {
  float maximum;      ///< of the logits, in units of log2
  float inverse_sum;  ///< 1 / sum of exp2(logit - maximum)

  /// Final probability of one slot.
  __device__ __forceinline__ float probability(float logit) const {
    return detail::fast_exp2(logit - maximum) * inverse_sum;
  }
};

/// The splits of one query head put together, one lane per split: every lane of the warp makes one,
/// from stat[splits] as block_h2o_attend leaves it. splits <= 32.
class h2o_merge {
 public:
  __device__ __forceinline__ h2o_merge(const float2* stat, int splits)
      : h2o_merge(static_cast<int>(threadIdx.x % 32) < splits ? stat[threadIdx.x % 32] : nothing(),
                  splits) {}

  /// mine: of the split of this lane, nothing() if there is none.
  __device__ __forceinline__ h2o_merge(float2 mine, int splits) : splits_(splits) {
    softmax_.maximum = warp_reduce(mine.x, [](float a, float b) { return fmaxf(a, b); });
    // An empty split (-inf, 0) has no mass.
    const float mass = mine.y == 0.0f ? 0.0f : mine.y * exp2f(mine.x - softmax_.maximum);
    softmax_.inverse_sum = 1.0f / warp_reduce(mass, [](float a, float b) { return a + b; });
    weight_ = mass * softmax_.inverse_sum;
  }

  /// Of an empty split.
  __device__ __forceinline__ static float2 nothing() { return make_float2(-INFINITY, 0.0f); }

  __device__ __forceinline__ const h2o_softmax& softmax() const { return softmax_; }

  /// An element of the head's output from its parts, of at most N splits.
  template <int N>
  __device__ __forceinline__ float element(const float (&parts)[N]) const {
    float sum = 0.0f;
#pragma unroll
    for (int split = 0; split < N; ++split) {
      if (split < splits_) sum = fmaf(__shfl_sync(0xffffffffu, weight_, split), parts[split], sum);
    }
    return sum;
  }

  /// Element d of the head's output, from partial [splits, head_dim]; 0 for d >= head_dim. All
  /// lanes of the warp call it together.
  __device__ __forceinline__ float element(const float* partial, int head_dim, int d) const {
    float sum = 0.0f;
#pragma unroll 4
    for (int split = 0; split < splits_; ++split) {
      const float part = d < head_dim ? partial[split * head_dim + d] : 0.0f;
      sum = fmaf(__shfl_sync(0xffffffffu, weight_, split), part, sum);
    }
    return sum;
  }

 private:
  int splits_;
  h2o_softmax softmax_;
  float weight_;  ///< of the split of this lane
};

/// score[slot] += sum over the group's query heads of probability(slot), where the slot `fresh` of
/// this token starts from 0. Then, if the head keeps its own keys, block_h2o_evict.
/// old_score, old_position [live]: the scores before this token and the positions with it, head's
/// own or copies. logit: query head h of the group at logit + h * logit_stride; softmax_of(h) gives
/// its h2o_softmax. `shared`: h2o_evict_shared_bytes<Threads>(policy.evict_every), 8-byte aligned.
/// Collective. AtATime: slots of a thread whose scores are under way together.
template <int Threads, int AtATime, int Barrier = 0, class Softmax>
__device__ __forceinline__ void block_h2o_account(const h2o_bookkeeping& head, int fresh,
                                                  const float* old_score,
                                                  const std::int32_t* old_position,
                                                  const float* logit, std::int64_t logit_stride,
                                                  int group_size, const Softmax& softmax_of,
                                                  void* shared) {
  const bool own_keys = head.policy.granularity == h2o_granularity::per_head;
  const bool evicts = own_keys && head.full();
  h2o_candidate candidate;
  // Several at a time where scores and positions come from far away: every store to them would keep
  // the next load from starting.
#pragma unroll 1
  for (int base = threadIdx.x; base < head.live; base += AtATime * Threads) {
    float score[AtATime];
    int position[AtATime];
#pragma unroll
    for (int i = 0; i < AtATime; ++i) {
      const int slot = base + i * Threads;
      const bool live = slot < head.live;
      score[i] = live && slot != fresh ? old_score[slot] : 0.0f;
      position[i] = live && evicts ? old_position[slot] : 0;
    }
#pragma unroll 1
    for (int h = 0; h < group_size; ++h) {
      const h2o_softmax softmax = softmax_of(h);
#pragma unroll
      for (int i = 0; i < AtATime; ++i) {
        const int slot = base + i * Threads;
        if (slot < head.live) score[i] += softmax.probability(logit[h * logit_stride + slot]);
      }
    }
#pragma unroll
    for (int i = 0; i < AtATime; ++i) {
      const int slot = base + i * Threads;
      if (slot >= head.live) break;
      head.score[slot] = score[i];
      if (evicts) candidate.offer(head, slot, position[i], score[i]);
    }
  }
  if (own_keys) {
    block_h2o_evict<Threads, Barrier>(
        head, [&](int slot) { return head.score[slot]; }, candidate, shared);
  }
}

WATERWEIGHT_ARCH_NAMESPACE_END
