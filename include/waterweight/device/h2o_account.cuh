// Block-level H2O decode attention, second half: the splits of a head become its output, and the
// softmax mass of every slot is added to its score; one slot leaves when the cache is full.
#pragma once

#include <cstdint>

#include <waterweight/device/reduce.cuh>
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

/// One KV head's bookkeeping arrays and the limits of its policy.
struct h2o_account_head {
  float* score;            ///< [capacity]
  std::int32_t* position;  ///< [capacity]
  std::int32_t* free_slot;
  int capacity;
  int fresh;  ///< where this token went
  int step;
  int live;
  int sinks;
  int recent;
};

/// Where the next token goes while nothing is evicted.
__device__ __forceinline__ void advance_free_slot(std::int32_t* free_slot, int live) {
  if (threadIdx.x == 0) *free_slot = live;
}

/// score[slot] += sum over the group's query heads of probability(slot), then evicts one slot if
/// live == capacity. logit: query head h of the group at logit + h * logit_stride; softmax(h) gives
/// its h2o_softmax. `scratch`: Threads / 32 64-bit words of shared memory. Collective.
template <int Threads, class Softmax>
__device__ void block_h2o_account(const h2o_account_head& head, const float* logit,
                                  std::int64_t logit_stride, int group_size, const Softmax& softmax,
                                  unsigned long long* scratch) {
  unsigned long long best = kNoVictim;
  int best_slot = 0;
  const bool full = head.live == head.capacity;
  for (int slot = threadIdx.x; slot < head.live; slot += Threads) {
    float mass = 0.0f;
    for (int h = 0; h < group_size; ++h) {
      mass += softmax(h).probability(logit[h * logit_stride + slot]);
    }
    const float score = (slot == head.fresh ? 0.0f : head.score[slot]) + mass;
    head.score[slot] = score;
    const int position = head.position[slot];
    if (!full || position < head.sinks || position > head.step - head.recent) continue;
    const unsigned long long key = victim_key(score, position);
    if (key < best) {
      best = key;
      best_slot = slot;
    }
  }
  if (!full) {
    advance_free_slot(head.free_slot, head.live);
    return;
  }
  const unsigned long long winner = block_reduce<Threads>(
      best, scratch, [](unsigned long long a, unsigned long long b) { return a < b ? a : b; });
  // Positions are unique, so exactly one thread holds the winner.
  if (winner == best && best != kNoVictim) {
    *head.free_slot = best_slot;
    head.position[best_slot] = -1;
    head.score[best_slot] = 0.0f;
  }
}

WATERWEIGHT_ARCH_NAMESPACE_END
