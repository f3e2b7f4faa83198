// Block-level H2O decode attention, second half: the splits of a head become its output, and the
// softmax mass of every slot is added to its score. Who leaves a full cache: h2o_evict.cuh.
#pragma once

#include <cstdint>

#include <waterweight/device/h2o_evict.cuh>
#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// The softmax over all splits of one query head: stat as block_h2o_attend leaves it.
struct h2o_softmax {
  float maximum;
  float inverse_sum;

  __device__ __forceinline__ h2o_softmax(const float2* stat, int splits) : maximum(-INFINITY) {
    for (int s = 0; s < splits; ++s) maximum = fmaxf(maximum, stat[s].x);
    float sum = 0.0f;
    for (int s = 0; s < splits; ++s) sum += split_mass(stat[s]);
    inverse_sum = 1.0f / sum;
  }

  /// Share of one split in the output.
  __device__ __forceinline__ float weight(const float2& stat) const {
    return split_mass(stat) * inverse_sum;
  }
  /// Final probability of one slot.
  __device__ __forceinline__ float probability(float logit) const {
    return exp2f(logit - maximum) * inverse_sum;
  }

 private:
  __device__ __forceinline__ float split_mass(const float2& stat) const {
    return stat.y == 0.0f ? 0.0f : stat.y * exp2f(stat.x - maximum);  // an empty split has none
  }
};

/// Element d of one query head's output: partial is [splits, head_dim].
__device__ __forceinline__ float merged_element(const h2o_softmax& softmax, const float2* stat,
                                                const float* partial, int splits, int head_dim,
                                                int d) {
  float sum = 0.0f;
  for (int s = 0; s < splits; ++s) {
    sum = fmaf(softmax.weight(stat[s]), partial[s * head_dim + d], sum);
  }
  return sum;
}

/// score[slot] += sum over the group's query heads of probability(slot), where the slot `fresh` of
/// this token starts from 0. Then, if the head keeps its own keys, block_h2o_evict.
/// logit: query head h of the group at logit + h * logit_stride; softmax(h) gives its h2o_softmax.
/// `shared`: h2o_evict_shared_bytes<Threads>(policy.evict_every), 8-byte aligned. Collective.
template <int Threads, class Softmax>
__device__ void block_h2o_account(const h2o_bookkeeping& head, int fresh, const float* logit,
                                  std::int64_t logit_stride, int group_size, const Softmax& softmax,
                                  void* shared) {
  const bool own_keys = head.policy.granularity == h2o_granularity::per_head;
  const bool evicts = own_keys && head.full();
  h2o_candidate candidate;
  for (int slot = threadIdx.x; slot < head.live; slot += Threads) {
    float mass = 0.0f;
    for (int h = 0; h < group_size; ++h) {
      mass += softmax(h).probability(logit[h * logit_stride + slot]);
    }
    const float score = (slot == fresh ? 0.0f : head.score[slot]) + mass;
    head.score[slot] = score;
    if (evicts) candidate.offer(head, slot, score);
  }
  if (own_keys) {
    block_h2o_evict<Threads>(
        head, [&](int slot) { return head.score[slot]; }, candidate, shared);
  }
}

WATERWEIGHT_ARCH_NAMESPACE_END
