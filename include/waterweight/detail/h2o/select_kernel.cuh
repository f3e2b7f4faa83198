// After prefill: which tokens stay, and the copy of their keys and values into the slots.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/attention/common.cuh>
#include <waterweight/detail/h2o/keep_sets.cuh>
#include <waterweight/device/h2o_evict.cuh>
#include <waterweight/device/reduce.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kSelectThreads = 512;

/// The `keep`-th largest ordered score of candidates [begin, end), found byte by byte from the top
/// (a radix select over 256-bin histograms), and how many of those equal to it are among the
/// `keep`.
struct select_threshold {
  std::uint32_t key;
  int equal_kept;
  int equal_total;
};

__device__ inline select_threshold find_threshold(const float* scores, int begin, int end, int keep,
                                                  int* histogram) {
  __shared__ std::uint32_t shared_digit;
  __shared__ int shared_above, shared_count;
  std::uint32_t prefix = 0;
  int wanted = keep, count = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += kSelectThreads) histogram[i] = 0;
    __syncthreads();
    for (int i = begin + threadIdx.x; i < end; i += kSelectThreads) {
      const std::uint32_t key = ordered_score(scores[i]);
      const bool in_prefix = shift == 24 || key >> (shift + 8) == prefix >> (shift + 8);
      if (in_prefix) atomicAdd(&histogram[key >> shift & 255], 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      // Each lane counts eight bins, from the top down; the lane in whose bins the count reaches
      // `wanted` looks at them one by one.
      int digit = 255 - 8 * static_cast<int>(threadIdx.x), bins = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) bins += histogram[digit - i];
      const int through = warp_prefix_sum(bins);
      const unsigned reached = __ballot_sync(0xffffffffu, through >= wanted);
      if (static_cast<int>(threadIdx.x) == (reached == 0 ? 31 : __ffs(reached) - 1)) {
        int above = through - bins;
        while (digit > 0 && above + histogram[digit] < wanted) above += histogram[digit--];
        shared_digit = static_cast<std::uint32_t>(digit);
        shared_above = above;
        shared_count = histogram[digit];
      }
    }
    __syncthreads();
    prefix |= shared_digit << shift;
    wanted -= shared_above;
    count = shared_count;
    __syncthreads();
  }
  return {prefix, wanted, count};
}

/// One block per (KV head, sequence, layer): writes the kept tokens' positions into the slots in
/// ascending order, their scores beside them, and empties the rest. With `sums` ([keep sets, batch,
/// tokens]) those decide; the heads of a set then all come to the same choice.
/// A template only so that no header defines a plain kernel twice.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    select_kernel(h2o_score_view column_sums, const float* sums, const std::int32_t* lengths,
                  int capacity, h2o_state_view state, h2o_policy policy) {
  static_assert(Threads == kSelectThreads, "find_threshold strides by kSelectThreads");
  __shared__ int histogram[256];
  __shared__ int scratch[Threads / 32];
  follow_earlier_kernels();
  const int kv_head = blockIdx.x, sequence = blockIdx.y, layer = blockIdx.z;
  const int tokens = column_sums.tokens, length = sequence_length(lengths, sequence, tokens);
  const std::int64_t head = std::int64_t{sequence} * gridDim.x + kv_head;
  const std::int64_t row = layer * state.layer_stride + head;
  const bool scored = state.score != nullptr;
  std::int32_t* position = state.position + row * capacity;
  float* score = scored ? state.score + row * capacity : nullptr;
  const float* own =
      scored ? column_sums.data + layer * column_sums.layer_stride + head * tokens : nullptr;
  const float* deciding =
      sums == nullptr ? own : sums + keep_set_row(policy, layer, sequence, gridDim.y) * tokens;
  policy = sequence_policy(policy, state.capacity_of, sequence);

  // Candidates: neither sinks nor recent. Without a cut every token is kept.
  const bool cut = scored && length > policy.budget();
  const int begin = cut ? policy.sinks : 0, end = cut ? length - policy.recent : 0;
  select_threshold threshold{0xffffffffu, 0, 0};
  if (cut && policy.heavy > 0) {
    threshold = find_threshold(deciding, begin, end, policy.heavy, histogram);
  }

  int kept = 0, equal_seen = 0;
  for (int base = 0; base < length; base += Threads) {
    const int token = base + threadIdx.x;
    const bool candidate = token >= begin && token < end;
    const std::uint32_t key = candidate ? ordered_score(deciding[token]) : 0;
    const bool equal = candidate && policy.heavy > 0 && key == threshold.key;
    int equal_total, kept_total;
    const int equal_rank = equal_seen + block_rank<Threads>(equal, scratch, equal_total);
    equal_seen += equal_total;
    // Of those equal to the threshold the last ones stay: on a tie the lower position leaves.
    const bool keep =
        token < length && (!candidate || (policy.heavy > 0 && key > threshold.key) ||
                           (equal && equal_rank >= threshold.equal_total - threshold.equal_kept));
    const int slot = kept + block_rank<Threads>(keep, scratch, kept_total);
    kept += kept_total;
    if (keep && slot < capacity) {
      position[slot] = token;
      if (scored) score[slot] = own[token];
    }
  }
  kept = min(kept, capacity - 1);
  for (int slot = kept + threadIdx.x; slot < capacity; slot += Threads) {
    position[slot] = -1;
    if (scored) score[slot] = 0.0f;
  }
  if (threadIdx.x == 0) {
    state.free_slot[row] = kept;
    if (kv_head == 0 && layer == 0) {
      state.length[sequence] = kept;
      state.step[sequence] = length;
    }
  }
}

inline constexpr int kCompactThreads = 256;

/// Copies the rows that `position` names, one 16-byte vector of K and of V per thread. k and v hold
/// the sequences of one layer behind those of the one before: cache.batch of each. In the cache,
/// and in `position`, layers begin layer_stride heads apart. Grid: x = vectors of a head, y = KV
/// head, z = sequence of a layer.
template <class T>
__global__ void __launch_bounds__(kCompactThreads)
    compact_kernel(heads_view<const T> k, heads_view<const T> v, kv_cache_view<T> cache,
                   const std::int32_t* position, std::int64_t layer_stride) {
  follow_earlier_kernels();
  const int vectors = cache.head_dim / 8;
  const std::int64_t i = std::int64_t{blockIdx.x} * kCompactThreads + threadIdx.x;
  const int slot = static_cast<int>(i / vectors), column = static_cast<int>(i % vectors) * 8;
  if (slot >= cache.capacity) return;
  const int kv_head = blockIdx.y, sequence = blockIdx.z, layer = sequence / cache.batch;
  const std::int64_t row =
      layer * layer_stride + std::int64_t{sequence % cache.batch} * cache.kv_heads + kv_head;
  const std::int64_t slots = row * cache.capacity;
  const int token = position[slots + slot];
  if (token < 0 || token >= k.tokens) return;
  const auto source = [&](const heads_view<const T>& x) {
    return reinterpret_cast<const uint4*>(x.data + sequence * x.batch_stride +
                                          token * x.token_stride + kv_head * x.head_stride +
                                          column);
  };
  const std::int64_t target = (slots + slot) * cache.head_dim + column;
  *reinterpret_cast<uint4*>(cache.k + target) = *source(k);
  *reinterpret_cast<uint4*>(cache.v + target) = *source(v);
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
