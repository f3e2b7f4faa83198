// The device-wide kernel over h2o_attend.cuh and h2o_account.cuh.
#pragma once

#include <waterweight/detail/attention/common.cuh>
#include <waterweight/device/h2o_account.cuh>
#include <waterweight/device/h2o_attend.cuh>
#include <waterweight/device/rotary.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kDecodeThreads = 128;
/// More splits than this and the merge costs more than the split saves; at most 32, one per lane.
inline constexpr int kMaxDecodeSplits = 16;

/// The most splits of each head: what a block holds in shared memory at once, up to the limit. A
/// function of the cache alone, never of the batch: a sequence gives the same bits alone and in
/// company.
WATERWEIGHT_HOST_DEVICE constexpr int decode_splits(int capacity, int slots_per_round) {
  const int wanted = (capacity + slots_per_round - 1) / slots_per_round;
  return wanted < kMaxDecodeSplits ? wanted : kMaxDecodeSplits;
}

/// The splits that `live` slots are divided into, of at most `splits` and most_slots each. Splits
/// cost time by their number, not by their slots, up to what a block holds at once.
__device__ __forceinline__ int live_splits(int live, int splits, int most_slots) {
  const int each = min(most_slots, kDecodeThreads);
  return min((live + each - 1) / each, splits);
}

/// Slots [begin, end) of split `split` of `splits` when `live` slots are in use.
struct split_range {
  int begin;
  int end;

  __device__ __forceinline__ split_range(int split, int splits, int live) {
    const int each = (live + splits - 1) / splits;
    begin = min(split * each, live);
    end = min(begin + each, live);
  }
};

/// Where the splits of one KV head leave their results: see h2o_split_output.
struct decode_output {
  float* logit;
  int capacity;
  float2* stat;
  float* partial;
};

/// Scratch of one decode step in the caller's workspace. All of it is zero between calls.
struct decode_workspace {
  unsigned* arrived;  ///< [batch, kv_heads]
  float2* stat;       ///< [batch, heads, splits]
  float* partial;     ///< [batch, heads, splits, head_dim]
  float* logit;       ///< [batch, heads, capacity]

  static std::size_t align(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

  /// Lays the parts out from `base`; returns the bytes they take.
  std::size_t place(void* base, std::size_t batch, std::size_t heads, std::size_t kv_heads,
                    std::size_t splits, std::size_t capacity, std::size_t head_dim) {
    std::size_t offset = 0;
    const auto next = [&](std::size_t bytes) {
      const std::size_t here = offset;
      offset += align(bytes);
      // With a null base only the size is wanted.
      return base == nullptr ? nullptr : static_cast<std::byte*>(base) + here;
    };
    partial = reinterpret_cast<float*>(next(batch * heads * splits * head_dim * sizeof(float)));
    logit = reinterpret_cast<float*>(next(batch * heads * capacity * sizeof(float)));
    stat = reinterpret_cast<float2*>(next(batch * heads * splits * sizeof(float2)));
    arrived = reinterpret_cast<unsigned*>(next(batch * kv_heads * sizeof(unsigned)));
    return offset;
  }
};

/// Shared memory of the block that merges: one softmax per query head of the group, then
/// eviction's.
constexpr std::size_t decode_merge_shared_bytes(int group_size, int evict_every) {
  return sizeof(h2o_softmax) * static_cast<std::size_t>(group_size) +
         h2o_evict_shared_bytes<kDecodeThreads>(evict_every);
}

/// The attention half of one KV head: the blocks of gridDim.x share its splits. One block for all
/// of them requests the next split while it computes the current one.
template <class T, int HeadDim>
__device__ __forceinline__ void attend_splits(const h2o_head<T>& head, const rotary_view& rotary,
                                              const T* q, std::int64_t q_stride, const T* k_new,
                                              const T* v_new, int group_size, float scale,
                                              const decode_output& out, int splits, int most_slots,
                                              std::byte* shared) {
  using attend = block_h2o_attend<T, HeadDim, kDecodeThreads>;
  const auto make = [&](int split, std::byte* memory) {
    const split_range range(split, splits, head.live);
    return attend(head, range.begin, range.end, most_slots, memory);
  };
  const int step = gridDim.x;
  std::byte* const other = shared + attend::shape::shared_bytes(most_slots);
  attend current = make(blockIdx.x, shared);
  current.begin();
  for (int split = blockIdx.x; split < splits; split += step) {
    const h2o_split_output output{
        out.logit,       out.capacity, out.stat + split, splits, out.partial + split * HeadDim,
        splits * HeadDim};
    if (split + step >= splits) {
      current.attend(q, q_stride, k_new, v_new, group_size, rotary, scale, output);
      break;
    }
    attend next = make(split + step, (split / step) % 2 == 0 ? other : shared);
    next.begin();
    current.template attend<2>(q, q_stride, k_new, v_new, group_size, rotary, scale, output);
    __syncthreads();  // this split's memory is the one after next's
    current = next;
  }
}

/// One block per (split, KV head, sequence), or one per (KV head, sequence) where those are enough
/// to fill the card. The block of a head that arrives last merges the splits, accounts and evicts:
/// it reads what the others wrote, in split order, so the result depends neither on which one it is
/// nor on how many blocks there are.
template <class T, int HeadDim>
__global__ void __launch_bounds__(kDecodeThreads)
    decode_kernel(heads_view<const T> q, heads_view<const T> k_new, heads_view<const T> v_new,
                  rotary_view rotary, kv_cache_view<T> cache, h2o_state_view state,
                  h2o_policy policy, heads_view<T> out, decode_workspace ws, int most_splits,
                  int most_slots, float scale) {
  extern __shared__ __align__(16) std::byte shared[];
  const int kv_head = blockIdx.y, sequence = blockIdx.z;
  const int group_size = q.heads / k_new.heads;
  const std::int64_t row = std::int64_t{sequence} * cache.kv_heads + kv_head;
  const std::int64_t slots = row * cache.capacity;
  const std::int64_t query_head = std::int64_t{sequence} * q.heads + kv_head * group_size;
  const int live = min(state.length[sequence] + 1, cache.capacity);
  const int splits = live_splits(live, most_splits, most_slots);
  const int fresh = min(max(state.free_slot[row], 0), live - 1);
  const int step = state.step[sequence];

  const h2o_head<T> head{cache.k + slots * HeadDim,
                         cache.v + slots * HeadDim,
                         state.position + slots,
                         fresh,
                         step,
                         live};
  float2* const stat = ws.stat + query_head * most_splits;
  float* const partial = ws.partial + query_head * most_splits * HeadDim;
  float* const logit = ws.logit + query_head * cache.capacity;
  attend_splits<T, HeadDim>(
      head, rotary, q.data + sequence * q.batch_stride + kv_head * group_size * q.head_stride,
      q.head_stride, k_new.data + sequence * k_new.batch_stride + kv_head * k_new.head_stride,
      v_new.data + sequence * v_new.batch_stride + kv_head * v_new.head_stride, group_size, scale,
      {logit, cache.capacity, stat, partial}, splits, most_slots, shared);

  if (gridDim.x > 1) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(ws.arrived + row, 1u) == gridDim.x - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
  } else {
    __syncthreads();
  }

  auto* const softmax = reinterpret_cast<h2o_softmax*>(shared);  // [group_size]
  for (int h = 0; h < group_size; ++h) {
    const h2o_merge merge(stat + h * splits, splits);
    if (threadIdx.x == 0) softmax[h] = merge.softmax();
    T* out_head =
        out.data + sequence * out.batch_stride + (kv_head * group_size + h) * out.head_stride;
    for (int first = 0; first < HeadDim; first += kDecodeThreads) {
      const int d = first + static_cast<int>(threadIdx.x);
      const float element = merge.element(partial + h * splits * HeadDim, HeadDim, d);
      if (d < HeadDim) out_head[d] = from_float<T>(element);
    }
  }
  __syncthreads();
  if (state.score == nullptr) {
    if (threadIdx.x == 0) state.free_slot[row] = live;
  } else {
    const h2o_bookkeeping bookkeeping{state.score + slots,
                                      head.position,
                                      state.free_slot + row,
                                      head.k,
                                      head.v,
                                      HeadDim / 8,
                                      step,
                                      live,
                                      sequence_policy(policy, state.capacity_of, sequence)};
    block_h2o_account<kDecodeThreads, 4>(
        bookkeeping, fresh, bookkeeping.score, bookkeeping.position, logit, cache.capacity,
        group_size, [&](int h) { return softmax[h]; }, softmax + group_size);
  }
  __syncthreads();  // everybody has read: leave the workspace as it was found
  for (int i = threadIdx.x; i < group_size * splits * HeadDim; i += kDecodeThreads) partial[i] = 0;
  for (int i = threadIdx.x; i < group_size * splits; i += kDecodeThreads) {
    stat[i] = make_float2(0.0f, 0.0f);
  }
  for (int i = threadIdx.x; i < group_size * cache.capacity; i += kDecodeThreads) logit[i] = 0;
  if (threadIdx.x == 0) ws.arrived[row] = 0;
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
