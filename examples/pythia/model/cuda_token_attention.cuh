// The attention warps of the token kernel: H2O decode attention of every layer in units of a split
// of a head, as h2o_decode_attention divides it. A block attends over all of its units first, the
// keys and values of one arriving while it works on the one before. Splits are passed on as words
// that carry their epoch: one block, always the same, merges those of a head and passes the head's
// output on. The block whose split of a head is the last to be done keeps the head's scores:
// off the critical path.
#pragma once

#include <waterweight/detail/attention/decode_kernel.cuh>
#include <waterweight/device/flagged.cuh>
#include <waterweight/device/h2o_account.cuh>
#include <waterweight/device/h2o_attend.cuh>

#include "examples/pythia/model/cuda_token_clock.cuh"
#include "examples/pythia/model/cuda_token_stage.cuh"
#include "examples/pythia/model/cuda_token_types.cuh"

namespace pythia {

/// Shared memory for merging and eviction.
constexpr std::size_t token_merge_bytes(int evict_every) {
  return sizeof(waterweight::h2o_softmax) +
         waterweight::h2o_evict_shared_bytes<kTokenAttentionThreads>(evict_every);
}

/// Clock: see cuda_token_clock.cuh.
template <class T, int HeadDim, class Clock = NoTokenClock>
class TokenAttention {
 public:
  using attend =
      waterweight::block_h2o_attend<T, HeadDim, kTokenAttentionThreads, kAttentionBarrier>;

  struct Scratch {
    alignas(16) T qkv[3 * HeadDim];
    unsigned last;  ///< of this block's units of a layer, those whose head is complete: a bit each
  };

  __device__ __forceinline__ TokenAttention(const TokenParameters<T>& p,
                                            const TokenLayer<T>* layers, const StagedPlanes* staged,
                                            Scratch* scratch, std::byte* attend_memory,
                                            std::byte* merge_memory)
      : p_(p),
        layers_(layers),
        staged_(staged),
        scratch_(scratch),
        attend_memory_(attend_memory),
        merge_memory_(merge_memory),
        live_(min(p.length[0] + 1, p.capacity)),
        splits_(waterweight::detail::live_splits(live_, p.splits, p.most_slots)),
        step_(p.step[0]) {}

  __device__ void run(std::uint32_t epoch) {
    for (int layer = 0; layer < p_.layer_count; ++layer, ++epoch) {
      // While this block waits for the input of down its ring fills up, and memory has time.
      while (staged_->mlp_layers < layer) __nanosleep(50);
      const int first = static_cast<int>(blockIdx.x), units = p_.heads * splits_;
      int fresh = fresh_slot(layer, first);
      unit_of(layer, first, fresh).begin();
      for (int unit = first; unit < units; unit += gridDim.x) {
        const int next = unit + static_cast<int>(gridDim.x);
        const int next_fresh = fresh_slot(layer, next);
        attend_over(layer, unit, fresh, next, next_fresh, epoch);
        fresh = next_fresh;
      }
      clock_.attends();
      // The last blocks merge: they have the fewest units.
      const int blocks = static_cast<int>(gridDim.x);
      for (int head = blocks - 1 - first; head < p_.heads; head += blocks) {
        merge(layer, head, epoch);
      }
      if (layers_[layer].score != nullptr) {
        const unsigned last = complete(layer, first, units);
        for (int unit = first, i = 0; unit < units; unit += gridDim.x, ++i) {
          if ((last >> i & 1) != 0) account(layer, unit / splits_, epoch);
        }
      }
      clock_.attended();
    }
    if (static_cast<int>(blockIdx.x) < p_.heads * splits_) clock_.finish_attending();
  }

 private:
  static constexpr int kThreads = kTokenAttentionThreads;

  __device__ __forceinline__ static void sync() {
    waterweight::group_sync<kThreads, kAttentionBarrier>();
  }

  /// Where the new token of a unit's head goes.
  __device__ __forceinline__ int fresh_slot(int layer, int unit) const {
    const int head = unit / splits_;
    if (head >= p_.heads) return 0;
    return min(max(layers_[layer].free_slot[head], 0), live_ - 1);
  }

  /// A split of a head; an empty one if there is no such unit.
  __device__ __forceinline__ attend unit_of(int layer, int unit, int fresh) const {
    const bool exists = unit < p_.heads * splits_;
    const TokenLayer<T>& of = layers_[layer];
    const std::int64_t slots = exists ? std::int64_t{unit / splits_} * p_.capacity : 0;
    const waterweight::h2o_head<T> slots_of_head{
        of.k + slots * HeadDim, of.v + slots * HeadDim, of.position + slots, fresh, step_, live_};
    const waterweight::detail::split_range range(unit % splits_, splits_, live_);
    return attend(slots_of_head, range.begin, exists ? range.end : range.begin, p_.most_slots,
                  attend_memory_);
  }

  /// Of the exchange buffers that layers use in turn.
  __device__ __forceinline__ int row_of(int layer, int head) const {
    return (layer & 1) * p_.heads + head;
  }

  __device__ __forceinline__ waterweight::flagged_word* stats_of(int row) const {
    return p_.exchange.stat + 2 * row * splits_;
  }
  __device__ __forceinline__ waterweight::flagged_word* partials_of(int row) const {
    return p_.exchange.partial + row * splits_ * HeadDim;
  }

  /// One unit, and the begin of the next one.
  __device__ __forceinline__ void attend_over(int layer, int unit, int fresh, int next,
                                              int next_fresh, std::uint32_t epoch) {
    const int head = unit / splits_, split = unit % splits_, row = row_of(layer, head);
    receive(p_.exchange.qkv + (layer & 1) * (3 * p_.hidden / 2) + head * (3 * HeadDim / 2), epoch);
    clock_.attends();
    const waterweight::h2o_flagged_output output{
        p_.exchange.logit + std::int64_t{row} * p_.capacity, stats_of(row) + 2 * split,
        partials_of(row) + split * HeadDim, epoch};
    unit_of(layer, unit, fresh)
        .attend_before(
            scratch_->qkv, scratch_->qkv + HeadDim, scratch_->qkv + 2 * HeadDim, p_.rotary,
            1.0f / sqrtf(static_cast<float>(HeadDim)), output,
            [&] { unit_of(layer, next, next_fresh).begin_keys(); },
            [&] { unit_of(layer, next, next_fresh).begin_values(); });
    clock_.attended();
  }

  /// The head's q, k and v as they come.
  __device__ __forceinline__ void receive(const waterweight::flagged_word* source,
                                          std::uint32_t epoch) {
    constexpr int kWords = 3 * HeadDim / 2, kEach = (kWords + kThreads - 1) / kThreads;
    std::uint32_t words[kEach];
    waterweight::wait_flagged<kEach, kThreads>(
        source + threadIdx.x, (kWords - static_cast<int>(threadIdx.x) + kThreads - 1) / kThreads,
        epoch, words);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int i = static_cast<int>(threadIdx.x) + j * kThreads;
      if (i < kWords) reinterpret_cast<std::uint32_t*>(scratch_->qkv)[i] = words[j];
    }
    sync();
  }

  /// Says that this block's units of the layer are done; a bit for each whose head so is complete.
  __device__ __forceinline__ unsigned complete(int layer, int first, int units) {
    if (threadIdx.x == 0) scratch_->last = 0;
    sync();  // also: all of the block's results are written
    const int mine = first + static_cast<int>(threadIdx.x * gridDim.x);
    if (mine < units) {
      unsigned* const arrived = p_.exchange.arrived + layer * p_.heads + mine / splits_;
      if (add_one(arrived) == static_cast<unsigned>(splits_) - 1) {
        *arrived = 0;
        atomicOr(&scratch_->last, 1u << threadIdx.x);
      }
    }
    sync();
    return scratch_->last;
  }

  /// Adds one and returns what it was. What this block wrote before its last barrier is visible to
  /// who counts on; what others wrote before they counted is so to this block after its next one.
  __device__ __forceinline__ static unsigned add_one(unsigned* counter) {
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(counter)
                 : "memory");
    return before;
  }

  /// The splits' sums as they come: every lane gets that of its split.
  __device__ __forceinline__ waterweight::h2o_merge merge_stats(int row,
                                                                std::uint32_t epoch) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float2 mine = waterweight::h2o_merge::nothing();
    if (lane < splits_) {
      uint2 words[1];
      waterweight::wait_flagged_pairs<1, 1>(stats_of(row) + 2 * lane, 1, epoch, words);
      mine = make_float2(__uint_as_float(words[0].x), __uint_as_float(words[0].y));
    }
    __syncwarp();
    return waterweight::h2o_merge(mine, splits_);
  }

  /// The head's output.
  __device__ __forceinline__ void merge(int layer, int head, std::uint32_t epoch) const {
    constexpr int kSplits = waterweight::detail::kMaxDecodeSplits;
    const int row = row_of(layer, head);
    waterweight::flagged_word* const out =
        p_.exchange.attention + (layer & 1) * (p_.hidden / 2) + head * (HeadDim / 2);
    // A split's sums come before its elements: meanwhile they are read.
    const waterweight::h2o_merge merged = merge_stats(row, epoch);
#pragma unroll 1
    for (int d = static_cast<int>(threadIdx.x); d - static_cast<int>(threadIdx.x) < HeadDim;
         d += kThreads) {
      std::uint32_t words[kSplits];
      waterweight::wait_flagged<kSplits, HeadDim>(partials_of(row) + d, d < HeadDim ? splits_ : 0,
                                                  epoch, words);
      float parts[kSplits];
#pragma unroll
      for (int split = 0; split < kSplits; ++split) parts[split] = __uint_as_float(words[split]);
      __syncwarp();
      const float element = merged.element(parts);
      const float above = __shfl_down_sync(0xffffffffu, element, 1);
      if (d < HeadDim && d % 2 == 0) {
        waterweight::store_flagged(out + d / 2, waterweight::detail::pack_pair<T>(element, above),
                                   epoch);
      }
    }
    // Nobody looks at it before the next token: all splits of this one have.
    if (layers_[layer].score == nullptr && threadIdx.x == 0) {
      layers_[layer].free_slot[head] = live_;
    }
  }

  /// The head's scores, and who leaves. All of its splits are done.
  __device__ void account(int layer, int head, std::uint32_t epoch) {
    const TokenLayer<T>& of = layers_[layer];
    const int row = row_of(layer, head);
    const int fresh = fresh_slot(layer, head * splits_);
    auto* const softmax = reinterpret_cast<waterweight::h2o_softmax*>(merge_memory_);
    const waterweight::h2o_merge merged = merge_stats(row, epoch);
    if (threadIdx.x == 0) *softmax = merged.softmax();
    sync();
    const std::int64_t slots = std::int64_t{head} * p_.capacity;
    const waterweight::h2o_bookkeeping bookkeeping{of.score + slots,
                                                   of.position + slots,
                                                   of.free_slot + head,
                                                   of.k + slots * HeadDim,
                                                   of.v + slots * HeadDim,
                                                   HeadDim / 8,
                                                   step_,
                                                   live_,
                                                   p_.policy};
    waterweight::block_h2o_account<kThreads, 4, kAttentionBarrier>(
        bookkeeping, fresh, bookkeeping.score, bookkeeping.position,
        p_.exchange.logit + std::int64_t{row} * p_.capacity, p_.capacity, 1,
        [&](int) { return *softmax; }, softmax + 1);
    sync();
  }

  const TokenParameters<T>& p_;
  const TokenLayer<T>* layers_;
  const StagedPlanes* staged_;
  Scratch* scratch_;
  std::byte *attend_memory_, *merge_memory_;
  int live_, splits_, step_;
  Clock clock_;
};

}  // namespace pythia
