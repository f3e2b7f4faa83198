// The attention warps of the token kernel: H2O decode attention of every layer in units of a split
// of a head, as h2o_decode_attention divides it. The block whose split of a head is the last to be
// done merges them, passes the head's output on, and then keeps the head's scores: off the critical
// path.
#pragma once

#include <waterweight/detail/attention/decode_kernel.cuh>
#include <waterweight/device/flagged.cuh>
#include <waterweight/device/h2o_account.cuh>
#include <waterweight/device/h2o_attend.cuh>

#include "examples/pythia/model/cuda_token_stage.cuh"
#include "examples/pythia/model/cuda_token_types.cuh"

namespace pythia {

/// Shared memory for merging and eviction.
constexpr std::size_t token_merge_bytes(int evict_every) {
  return sizeof(waterweight::h2o_softmax) +
         waterweight::h2o_evict_shared_bytes<kTokenAttentionThreads>(evict_every);
}

template <class T, int HeadDim>
class TokenAttention {
 public:
  using attend =
      waterweight::block_h2o_attend<T, HeadDim, kTokenAttentionThreads, kAttentionBarrier>;

  struct Scratch {
    alignas(16) T qkv[3 * HeadDim];
    bool last;
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
        step_(p.step[0]) {}

  __device__ void run(std::uint32_t epoch) {
    const int units = p_.heads * p_.splits;
    for (int layer = 0; layer < p_.layer_count; ++layer) {
      // While this block waits for the input of down its ring fills up, and memory has time.
      while (staged_->mlp_layers < layer) __nanosleep(50);
      for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
        split(layer, unit / p_.splits, unit % p_.splits, epoch + static_cast<std::uint32_t>(layer));
      }
    }
  }

 private:
  static constexpr int kThreads = kTokenAttentionThreads;

  __device__ __forceinline__ static void sync() {
    waterweight::group_sync<kThreads, kAttentionBarrier>();
  }

  __device__ void split(int layer, int head, int split, std::uint32_t epoch) {
    const TokenLayer<T>& of = layers_[layer];
    const std::int64_t slots = std::int64_t{head} * p_.capacity;
    const int fresh = min(max(of.free_slot[head], 0), live_ - 1);
    const waterweight::h2o_head<T> slots_of_head{
        of.k + slots * HeadDim, of.v + slots * HeadDim, of.position + slots, fresh, step_, live_};
    const waterweight::detail::split_range range(split, p_.splits, live_);
    attend attention(slots_of_head, range.begin, range.end, p_.most_slots, attend_memory_);
    attention.begin();
    const int copy = layer & 1, row = copy * p_.heads + head;
    receive(p_.exchange.qkv + copy * (3 * p_.hidden / 2) + head * (3 * HeadDim / 2), epoch);
    const waterweight::h2o_split_output output{
        p_.exchange.logit + std::int64_t{row} * p_.capacity,
        p_.capacity,
        p_.exchange.stat + row * p_.splits + split,
        p_.splits,
        p_.exchange.partial + (row * p_.splits + split) * HeadDim,
        p_.splits * HeadDim};
    attention.attend(scratch_->qkv, HeadDim, scratch_->qkv + HeadDim, scratch_->qkv + 2 * HeadDim,
                     1, p_.rotary, 1.0f / sqrtf(static_cast<float>(HeadDim)), output);
    if (!is_last(layer, head)) return;
    merge(of, layer, head, row, fresh, epoch);
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

  __device__ __forceinline__ bool is_last(int layer, int head) {
    __threadfence();
    sync();
    if (threadIdx.x == 0) {
      unsigned* const arrived = p_.exchange.arrived + layer * p_.heads + head;
      scratch_->last = atomicAdd(arrived, 1u) == static_cast<unsigned>(p_.splits) - 1;
      if (scratch_->last) *arrived = 0;
    }
    sync();
    if (!scratch_->last) return false;
    __threadfence();
    return true;
  }

  __device__ void merge(const TokenLayer<T>& of, int layer, int head, int row, int fresh,
                        std::uint32_t epoch) {
    auto* const softmax = reinterpret_cast<waterweight::h2o_softmax*>(merge_memory_);
    const waterweight::h2o_merge merged(p_.exchange.stat + row * p_.splits, p_.splits);
    const float* const partial = p_.exchange.partial + row * p_.splits * HeadDim;
    waterweight::flagged_word* const out =
        p_.exchange.attention + (layer & 1) * (p_.hidden / 2) + head * (HeadDim / 2);
    for (int first = 0; first < HeadDim; first += kThreads) {
      const int d = first + static_cast<int>(threadIdx.x);
      const float element = merged.element(partial, HeadDim, d);
      const float above = __shfl_down_sync(0xffffffffu, element, 1);
      if (d < HeadDim && d % 2 == 0) {
        waterweight::store_flagged(out + d / 2, waterweight::detail::pack_pair<T>(element, above),
                                   epoch);
      }
    }
    if (of.score == nullptr) {
      if (threadIdx.x == 0) of.free_slot[head] = live_;
      return;
    }
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
  int live_, step_;
};

}  // namespace pythia
