// The books of a cluster that decodes: what its blocks must know of each other's chunks, the
// scores, and which slot leaves. One warp per block, beside those that attend.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/arch/cluster.cuh>
#include <waterweight/detail/attention/cluster_decode_shape.cuh>
#include <waterweight/device/h2o_evict.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// The chunks of one query head put together, one or two per lane: what to multiply the
/// exponentials of a chunk by to make them probabilities of the whole head.
class chunk_merge {
 public:
  /// stats: of all splits * kSplitChunks chunks.
  __device__ __forceinline__ chunk_merge(const chunk_stat* stats, int splits) {
    const int lane = threadIdx.x % 32, chunks = splits * kSplitChunks;
    const chunk_stat empty{-INFINITY, 0.0f};
    const chunk_stat low = lane < chunks ? stats[lane] : empty;
    chunk_stat high = empty;  // of large caches only; where it is empty it changes no bit
    if (lane + 32 < chunks) high = stats[lane + 32];
    // Ordered as integers the maximum is one instruction; a NaN is below everything.
    maximum_ = from_ordered_score(
        __reduce_max_sync(0xffffffffu, ordered_score(fmaxf(low.maximum, high.maximum))));
    low_weight_ = factor(low.maximum);
    high_weight_ = factor(high.maximum);
    float sum = fmaf(low.sum, low_weight_, high.sum * high_weight_);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    inverse_sum_ = __fdividef(1.0f, sum);
    low_weight_ *= inverse_sum_;
    high_weight_ *= inverse_sum_;
  }

  /// The weight of chunk `chunk` of split `split`; only `chunk` may differ between lanes.
  __device__ __forceinline__ float of_chunk(int split, int chunk) const {
    const float weight = split < kSplitsOfLanes ? low_weight_ : high_weight_;
    return __shfl_sync(0xffffffffu, weight, split % kSplitsOfLanes * kSplitChunks + chunk);
  }

  /// weights[splits]: of what each split has put together relative to its own maximum.
  __device__ __forceinline__ void of_splits(const chunk_stat* stats, int splits,
                                            float* weights) const {
    const int lane = threadIdx.x % 32;
    if (lane >= splits) return;
    float maximum = -INFINITY;
#pragma unroll
    for (int c = 0; c < kSplitChunks; ++c) {
      maximum = fmaxf(maximum, stats[lane * kSplitChunks + c].maximum);
    }
    weights[lane] = factor(maximum) * inverse_sum_;
  }

 private:
  static constexpr int kSplitsOfLanes = 32 / kSplitChunks;

  /// Nothing of what is empty, which has no maximum to compare.
  __device__ __forceinline__ float factor(float maximum) const {
    return maximum == -INFINITY ? 0.0f : fast_exp2(maximum - maximum_);
  }
  float maximum_, inverse_sum_, low_weight_, high_weight_;
};

/// The slot that a split offers for eviction.
struct split_candidate {
  unsigned long long key = kNoVictim;
  int slot = 0;
};

/// The slots of one split of a head, kSplitSlots / 32 per lane: their scores and who of them
/// leaves.
class split_books {
 public:
  static constexpr int kSlots = kSplitSlots / 32;  ///< of a lane

  /// The split from slot `begin` of the head whose scores and positions these are.
  __device__ __forceinline__ split_books(float* score, std::int32_t* position, int begin)
      : first_(begin + static_cast<int>(threadIdx.x % 32)),
        score_at_(score + first_),
        position_at_(position + first_) {}

  /// Asks for scores and positions to be brought into L2.
  __device__ __forceinline__ void prefetch(int capacity) const {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (slot(i) >= capacity) break;
      prefetch_l2(score_at_ + 32 * i);
      prefetch_l2(position_at_ + 32 * i);
    }
  }

  /// Requests scores and positions as the last token left them.
  __device__ __forceinline__ void load(int capacity) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const bool exists = slot(i) < capacity;
      score_[i] = exists ? __ldcg(score_at_ + 32 * i) : 0.0f;
      position_[i] = exists ? __ldcg(position_at_ + 32 * i) : -1;
    }
  }

  /// Enters this token, which starts from nothing, into slot `fresh`, and sees which slots are
  /// neither sinks nor recent nor empty.
  __device__ __forceinline__ void enter(const h2o_bookkeeping& head, int fresh) {
    const int last = head.step - head.policy.recent;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (slot(i) == fresh) {
        score_[i] = 0.0f;
        position_[i] = head.step;
      }
      may_leave_[i] = position_[i] >= head.policy.sinks && position_[i] <= last;
    }
  }

  /// score += what one query head has given. p [kSplitSlots]: exponentials of its chunks.
  __device__ __forceinline__ void add(const float* p, const chunk_merge& merge, int split) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const int in_split = i * 32 + lane;
      score_[i] = fmaf(p[in_split], merge.of_chunk(split, in_split / kChunkSlots), score_[i]);
    }
  }

  /// The candidate of the split among the slots that may leave; the lane that holds it (lane 0 if
  /// there is none) returns true.
  __device__ __forceinline__ bool choose(split_candidate& candidate) const {
    constexpr std::uint32_t kNone = 0xffffffffu;
    std::uint32_t order[kSlots], least = kNone;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      order[i] = may_leave_[i] ? ordered_score(score_[i]) : kNone;
      least = min(least, order[i]);
    }
    least = __reduce_min_sync(0xffffffffu, least);
    std::uint32_t own = kNone;
    int own_slot = 0;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const auto position = static_cast<std::uint32_t>(position_[i]);
      if (order[i] == least && least != kNone && position < own) {
        own = position;
        own_slot = slot(i);
      }
    }
    const std::uint32_t first = __reduce_min_sync(0xffffffffu, own);
    candidate.key = static_cast<unsigned long long>(least) << 32 | first;
    candidate.slot = own_slot;
    return least == kNone ? threadIdx.x % 32 == 0 : own == first;
  }

  /// Writes the scores of live slots and the position of `fresh`, but nothing of slot `but`.
  __device__ __forceinline__ void store(int live, int fresh, int but = -1) const {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (slot(i) >= live || slot(i) == but) continue;
      score_at_[32 * i] = score_[i];
      if (slot(i) == fresh) position_at_[32 * i] = position_[i];
    }
  }

 private:
  __device__ __forceinline__ int slot(int i) const { return first_ + 32 * i; }

  int first_;  ///< slot of this lane
  float* score_at_;
  std::int32_t* position_at_;
  float score_[kSlots];
  std::int32_t position_[kSlots];
  bool may_leave_[kSlots];
};

/// The best of the splits' candidates leaves; the others get what their split has not written: the
/// score, and the position if the slot is `fresh`. A position that stands is not written again, as
/// a lone word costs the memory as much as a row of scores. keys, slots [splits].
__device__ __forceinline__ void evict_candidate(const h2o_bookkeeping& head,
                                                const unsigned long long* keys, const int* slots,
                                                int splits, int fresh) {
  const int lane = threadIdx.x % 32;
  const unsigned long long own = lane < splits ? keys[lane] : kNoVictim;
  const unsigned long long winner = warp_min_key(own);
  if (own == kNoVictim) return;
  const int slot = slots[lane];
  // Positions are unique, so exactly one lane holds the winner.
  if (own == winner) {
    head.position[slot] = -1;
    head.score[slot] = 0.0f;
    *head.free_slot = slot;
  } else {
    const auto order = static_cast<std::uint32_t>(own >> 32);
    if (slot == fresh) head.position[slot] = static_cast<std::int32_t>(own);
    head.score[slot] = order == 0 ? __uint_as_float(0x7fffffffu) : from_ordered_score(order);
  }
}

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
