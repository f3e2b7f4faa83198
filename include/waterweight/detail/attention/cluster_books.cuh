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

/// weights[kSplitChunks]: what to multiply the exponentials of this split's chunks by to make them
/// probabilities of the whole head. stats: of all chunks of one query head, splits <= 8.
__device__ __forceinline__ void merge_chunks(const chunk_stat* stats, int splits, int split,
                                             float* weights) {
  constexpr int kLanesOfSplit = kSplitChunks, kSplitsAtATime = 32 / kLanesOfSplit;
  const int lane = threadIdx.x % 32, chunks = splits * kSplitChunks;
  const chunk_stat empty{-INFINITY, 0.0f};
  // Chunks beyond the lanes exist in large caches only; where they are empty they change no bit.
  const chunk_stat low = lane < chunks ? stats[lane] : empty;
  const chunk_stat high = lane + 32 < chunks ? stats[lane + 32] : empty;
  // Ordered as integers the maximum is one instruction; a NaN is below everything.
  const float maximum = from_ordered_score(
      __reduce_max_sync(0xffffffffu, ordered_score(fmaxf(low.maximum, high.maximum))));
  const auto factor = [&](const chunk_stat& stat) {  // an empty chunk has no maximum to compare
    return stat.sum == 0.0f ? 0.0f : fast_exp2(stat.maximum - maximum);
  };
  const float low_factor = factor(low), high_factor = factor(high);
  float sum = fmaf(low.sum, low_factor, high.sum * high_factor);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  const float inverse = __fdividef(1.0f, sum);
  if (lane / kLanesOfSplit == split % kSplitsAtATime) {
    weights[lane % kLanesOfSplit] = (split < kSplitsAtATime ? low_factor : high_factor) * inverse;
  }
}

/// The slots of one split of a head, kSplitSlots / 32 per lane: their scores and who of them
/// leaves.
class split_books {
 public:
  static constexpr int kSlots = kSplitSlots / 32;  ///< of a lane

  /// The split from slot `begin`.
  __device__ __forceinline__ explicit split_books(int begin) : begin_(begin) {}

  /// Requests scores and positions as the last token left them.
  __device__ __forceinline__ void load(const float* score, const std::int32_t* position,
                                       int capacity) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const bool exists = slot(i) < capacity;
      score_[i] = exists ? __ldcg(score + slot(i)) : 0.0f;
      position_[i] = exists ? __ldcg(position + slot(i)) : -1;
    }
  }

  /// score[slot] += sum over the group's query heads of p * weight, from nothing for this token's.
  /// p [group_size, kSplitSlots], weights [group_size, kSplitChunks]. Keeps the best candidate, if
  /// the head evicts.
  __device__ __forceinline__ void account(const h2o_bookkeeping& head, int fresh, const float* p,
                                          const float* weights, int group_size, bool evicts) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (slot(i) == fresh) {
        score_[i] = 0.0f;
        position_[i] = head.step;
        head.position[fresh] = head.step;
      }
    }
#pragma unroll 1
    for (int h = 0; h < group_size; ++h) {
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        const int in_split = i * 32 + lane;
        score_[i] = fmaf(p[h * kSplitSlots + in_split],
                         weights[h * kSplitChunks + in_split / kChunkSlots], score_[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (slot(i) >= head.live) continue;
      head.score[slot(i)] = score_[i];
      if (evicts) candidate_.offer(head, slot(i), position_[i], score_[i]);
    }
  }

  /// One slot of the head leaves: every split tells every other its candidate, and the lane that
  /// holds the best of them lets it go. candidates [splits]: where the others' arrive, at `there`.
  __device__ __forceinline__ void evict(const h2o_bookkeeping& head, int split, int splits,
                                        const unsigned long long* candidates,
                                        std::uint64_t* there) const {
    const int lane = threadIdx.x % 32;
    const unsigned long long best = warp_min_key(candidate_.key);
    if (lane < splits) remote_array(candidates, there, lane).send(split, best);
    mbarrier_wait(there, 0);
    const unsigned long long winner = warp_min_key(lane < splits ? candidates[lane] : kNoVictim);
    // Positions are unique, so exactly one lane of the cluster holds the winner.
    if (winner != candidate_.key || winner == kNoVictim) return;
    head.position[candidate_.slot] = -1;
    head.score[candidate_.slot] = 0.0f;
    *head.free_slot = candidate_.slot;
  }

 private:
  __device__ __forceinline__ int slot(int i) const {
    return begin_ + i * 32 + static_cast<int>(threadIdx.x % 32);
  }

  int begin_;
  float score_[kSlots];
  std::int32_t position_[kSlots];
  h2o_candidate candidate_;
};

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
