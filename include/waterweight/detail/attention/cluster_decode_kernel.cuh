// The H2O decode step of caches of up to a thousand slots on sm_90 and newer: a cluster of blocks
// per KV head, one split each, which meet in shared memory instead of in the workspace.
//
// At batch 1 the step is a chain of latencies, and every link taken out counts: keys and values are
// asked for before the kernels ahead have ended (into shared memory where the caller allows it,
// else into L2 only, so that nothing stale is ever read), all else is asked for at once when they
// have, two threads score one key, and the splits send their results straight into the shared
// memory of the two blocks that need them: one merges the outputs while the other, which has had
// scores and positions at hand since the beginning, does the books.
// Among many sequences a step waits behind the copies of its neighbours: there the small loads go
// first.
#pragma once

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/arch/cluster.cuh>
#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/attention/common.cuh>
#include <waterweight/device/h2o_account.cuh>
#include <waterweight/device/rotary.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kClusterThreads = 256;
inline constexpr int kClusterSplitSlots = kClusterThreads / 2;  ///< two threads per key
inline constexpr int kMaxClusterSplits = 8;                     ///< the portable cluster size
/// Logits of all query heads of a group that the accounting block has room for.
inline constexpr int kMaxClusterLogits = 4096;

/// Whether this kernel takes the cache, and into how many blocks it divides a head: a function of
/// the cache alone, as in decode_splits.
WATERWEIGHT_HOST_DEVICE constexpr int cluster_splits(int capacity) {
  const int needed = (capacity + kClusterSplitSlots - 1) / kClusterSplitSlots;
  return needed < 2 ? 2 : needed;  // one merges, one accounts
}
WATERWEIGHT_HOST_DEVICE constexpr bool cluster_takes(int capacity, int group_size) {
  return cluster_splits(capacity) <= kMaxClusterSplits &&
         group_size <= kMaxClusterLogits / capacity;
}

/// How 256 threads see HeadDim elements of 2 bytes, and where a block keeps what.
template <int HeadDim>
struct cluster_decode_shape {
  static constexpr int kRowBytes = 2 * HeadDim;
  /// Rows of keys lie 32 bytes beside a multiple of 64, so that the eight threads of four keys that
  /// read together, two neighbouring 16-byte vectors each, meet all the banks.
  static constexpr int kKeyPitch = kRowBytes + (kRowBytes % 64 == 0 ? 32 : 0);
  static constexpr int kColumns = HeadDim / 4;                ///< values: 8 bytes per thread
  static constexpr int kGroups = kClusterThreads / kColumns;  ///< rows of values at a time
  static constexpr int kWarps = kClusterThreads / 32;

  int group_size, splits, capacity, evict_every;

  // Offsets in bytes; those of the first line are 16-byte aligned.
  WATERWEIGHT_HOST_DEVICE constexpr int keys() const { return 0; }
  WATERWEIGHT_HOST_DEVICE constexpr int values() const { return kClusterSplitSlots * kKeyPitch; }
  WATERWEIGHT_HOST_DEVICE constexpr int fresh() const {  // this token's key and value
    return values() + kClusterSplitSlots * kRowBytes;
  }
  WATERWEIGHT_HOST_DEVICE constexpr int sums() const { return fresh() + 2 * kRowBytes; }
  WATERWEIGHT_HOST_DEVICE constexpr int query() const { return sums() + 4 * kGroups * HeadDim; }
  WATERWEIGHT_HOST_DEVICE constexpr int p() const { return query() + 4 * HeadDim * group_size; }
  WATERWEIGHT_HOST_DEVICE constexpr int maxima() const { return p() + 4 * kClusterSplitSlots; }
  WATERWEIGHT_HOST_DEVICE constexpr int evict() const { return maxima() + 4 * kWarps; }
  // What the merging block receives and prepares.
  WATERWEIGHT_HOST_DEVICE constexpr int partial() const {
    return evict() +
           static_cast<int>(h2o_evict_shared_bytes<kClusterThreads>(evict_every) + 15) / 16 * 16;
  }
  WATERWEIGHT_HOST_DEVICE constexpr int stat() const {
    return partial() + 4 * group_size * splits * HeadDim;
  }
  WATERWEIGHT_HOST_DEVICE constexpr int softmax() const { return stat() + 8 * group_size * splits; }
  WATERWEIGHT_HOST_DEVICE constexpr int logit() const { return softmax() + 8 * group_size; }
  WATERWEIGHT_HOST_DEVICE constexpr int score() const {
    return logit() + 4 * group_size * capacity;
  }
  WATERWEIGHT_HOST_DEVICE constexpr int position() const { return score() + 4 * capacity; }
  WATERWEIGHT_HOST_DEVICE constexpr int bytes() const { return position() + 4 * capacity; }
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// One thread or warp asks for rows [first, first + rows) of a head into rows `first`... of a tile.
template <int RowBytes, int Pitch>
__device__ __forceinline__ void bulk_copy_rows(std::byte* tile, const void* head, int first,
                                               int rows, std::uint64_t* barrier) {
  const auto* source = static_cast<const std::byte*>(head) + std::int64_t{first} * RowBytes;
  const int lane = threadIdx.x % 32;
  if (lane == 0) mbarrier_arrive_expect(barrier, static_cast<std::uint32_t>(rows * RowBytes));
  if constexpr (Pitch == RowBytes) {
    if (lane == 0 && rows > 0) bulk_copy(tile + first * Pitch, source, rows * RowBytes, barrier);
  } else {
    __syncwarp();  // the bytes are expected before they arrive
    for (int row = lane; row < rows; row += 32) {
      bulk_copy(tile + (first + row) * Pitch, source + row * RowBytes, RowBytes, barrier);
    }
  }
}

/// Four elements of 2 bytes as fp32.
template <class T>
__device__ __forceinline__ float4 unpack_four(uint2 words) {
  const float2 low = unpack_pair<T>(words.x), high = unpack_pair<T>(words.y);
  return make_float4(low.x, low.y, high.x, high.y);
}

#endif

/// Cluster of gridDim.x blocks = the splits of KV head blockIdx.y of sequence blockIdx.z. Split s
/// is slots [s * kClusterSplitSlots, (s + 1) * kClusterSplitSlots) as far as they are live, so what
/// it gives does not depend on the capacity. Block 0 merges the outputs, block 1 accounts and
/// evicts.
/// Resident: all blocks fit on the card at once, and so start before their turn; one of each step
/// per SM, with registers to spare. early: keys and values may then be read.
template <class T, int HeadDim, bool Resident>
__global__ void __launch_bounds__(kClusterThreads, !Resident && HeadDim <= 96 ? 4 : 1)
    cluster_decode_kernel(heads_view<const T> q, heads_view<const T> k_new,
                          heads_view<const T> v_new, rotary_view rotary, kv_cache_view<T> cache,
                          h2o_state_view state, h2o_policy policy, heads_view<T> out,
                          float scale_log2, bool early) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using layout = cluster_decode_shape<HeadDim>;
  constexpr int kThreads = kClusterThreads, kRowBytes = layout::kRowBytes;
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ __align__(8) std::uint64_t barriers[3];
  std::uint64_t* const keys_there = barriers;
  std::uint64_t* const values_there = barriers + 1;
  std::uint64_t* const results_there = barriers + 2;  // in the blocks they are sent to
  // Read by one warp and passed on: a word that every warp of the card asks for at once comes late.
  __shared__ int expected_rows, length, step_of_token, free_slot;
  const int kv_head = blockIdx.y, sequence = blockIdx.z, split = blockIdx.x, splits = gridDim.x;
  const int group_size = q.heads / k_new.heads, tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const bool scored = state.score != nullptr;
  const bool merges = split == 0, accounts = scored && split == 1;
  const layout at{group_size, splits, cache.capacity, scored ? policy.evict_every : 1};
  const std::int64_t row = std::int64_t{sequence} * cache.kv_heads + kv_head;
  const std::int64_t slots = row * cache.capacity;
  const int begin = split * kClusterSplitSlots;
  T* const k_split = cache.k + (slots + begin) * HeadDim;
  T* const v_split = cache.v + (slots + begin) * HeadDim;
  const auto rows_from = [&](int first, int tokens) {
    return min(max(min(tokens + 1, cache.capacity) - first, 0), kClusterSplitSlots);
  };
  const auto request = [&](int first, int rows) {
    bulk_copy_rows<kRowBytes, layout::kKeyPitch>(shared + at.keys(), k_split, first, rows,
                                                 keys_there);
    bulk_copy_rows<kRowBytes, kRowBytes>(shared + at.values(), v_split, first, rows, values_there);
  };

  constexpr int kCopyWarp = layout::kWarps - 1, kStateWarp = layout::kWarps - 2;
  int expected = 0;  // rows that this warp has asked for
  if (warp == kCopyWarp) {
    if (lane == 0) {
      mbarrier_init(keys_there, 1);
      mbarrier_init(values_there, 1);
      mbarrier_init(results_there, 1);
      mbarrier_init_fence();
    }
    __syncwarp();
    // A hint: the kernels ahead may be about to change the length.
    if (Resident) expected = rows_from(begin, __ldcg(state.length + sequence));
    if (early) {
      request(0, expected);
    } else if (lane == 0 && expected > 0) {
      bulk_prefetch(k_split, expected * kRowBytes);
      bulk_prefetch(v_split, expected * kRowBytes);
    }
  } else if (Resident && tid * 32 < cache.capacity) {  // a line of each
    if (tid == 0) prefetch_l2(state.free_slot + row);
    if (accounts) {
      prefetch_l2(state.score + slots + tid * 32);
      prefetch_l2(state.position + slots + tid * 32);
    }
  }
  const T* const q_heads =
      q.data + sequence * q.batch_stride + kv_head * group_size * q.head_stride;
  const T* const key = k_new.data + sequence * k_new.batch_stride + kv_head * k_new.head_stride;
  const T* const value = v_new.data + sequence * v_new.batch_stride + kv_head * v_new.head_stride;
  element_rotation rotation(rotary, min(tid, HeadDim - 1));
  // Parameters come through a cache that is cold at every launch: not when they are first needed.
  asm volatile("" ::"l"(out.data), "l"(out.batch_stride), "l"(out.head_stride),
               "l"(state.capacity_of), "r"(policy.sinks), "r"(policy.heavy), "r"(policy.recent),
               "r"(policy.evict_every), "r"(static_cast<int>(policy.granularity)), "f"(scale_log2));
  __syncthreads();
  cluster_arrive_relaxed();
  cluster_wait();  // the blocks that receive have started and made their barriers
  wait_for_earlier_kernels();
  // Not earlier: the kernel after the next one would take its place on the SMs too, and leave the
  // next one's blocks to crowd on what is free.
  launch_dependents();

  // Everything the step depends on is under way before the first of it is used.
  if (warp == kCopyWarp) {
    // A cache with a budget is full but for its beginnings: worth no wait for the length.
    if (!Resident) {
      expected = rows_from(begin, scored ? cache.capacity : __ldcg(state.length + sequence));
    }
    if (!early) request(0, expected);
    if (lane == 0) expected_rows = expected;
  }
  if (warp == kStateWarp) {
    if (lane == 0) length = __ldcg(state.length + sequence);
    if (lane == 1) step_of_token = __ldcg(state.step + sequence);
    if (lane == 2) free_slot = __ldcg(state.free_slot + row);
  }
  float q_own = 0.0f, q_partner = 0.0f, key_own = 0.0f, key_partner = 0.0f;
  T new_value{};
  if (tid < HeadDim) {
    q_own = to_float(q_heads[tid]);
    q_partner = to_float(q_heads[rotation.partner()]);
    key_own = to_float(key[tid]);
    key_partner = to_float(key[rotation.partner()]);
    new_value = value[tid];
  }
  auto* const score = reinterpret_cast<float*>(shared + at.score());
  auto* const position = reinterpret_cast<std::int32_t*>(shared + at.position());
  if (accounts) {
#pragma unroll 1
    for (int slot = tid; slot < cache.capacity; slot += kThreads) {
      cp_async_4(score + slot, state.score + slots + slot, true);
      cp_async_4(position + slot, state.position + slots + slot, true);
    }
  }
  cp_async_commit();
  __syncthreads();

  // Not kept but read again where they are needed: there are no registers to spare.
  const auto live_slots = [&] { return min(length + 1, cache.capacity); };
  const auto fresh_slot = [&] { return min(max(free_slot, 0), live_slots() - 1); };
  const int rows = rows_from(begin, length), fresh_row = fresh_slot() - begin;
  auto* const query = reinterpret_cast<float*>(shared + at.query());
  auto* const fresh_key = reinterpret_cast<T*>(shared + at.fresh());
  T* const fresh_value = fresh_key + HeadDim;
  if (tid < HeadDim) {
    rotation.set_position(step_of_token);
    const T new_key = from_float<T>(rotation(key_own, key_partner));
    query[tid] = rotation(q_own, q_partner);
    fresh_key[tid] = new_key;
    fresh_value[tid] = new_value;
    if (fresh_row >= 0 && fresh_row < rows) {
      k_split[fresh_row * HeadDim + tid] = new_key;
      v_split[fresh_row * HeadDim + tid] = new_value;
    }
#pragma unroll 1
    for (int h = 1; h < group_size; ++h) {
      const T* other = q_heads + h * q.head_stride;
      query[h * HeadDim + tid] =
          rotation(to_float(other[tid]), to_float(other[rotation.partner()]));
    }
  }
  if (tid == kThreads - 1) {
    if (scored ? accounts : merges) state.position[slots + fresh_slot()] = step_of_token;
    // Of every query head two numbers per split, and outputs per split, or a logit per slot.
    if (merges) mbarrier_arrive_expect(results_there, 4 * group_size * splits * (2 + HeadDim));
    if (accounts)
      mbarrier_arrive_expect(results_there, 4 * group_size * (2 * splits + live_slots()));
  }
  std::uint32_t parity = 0;
  if (rows > expected_rows) {  // a sequence that has grown, or changed, since the hint
    mbarrier_wait(keys_there, 0);
    mbarrier_wait(values_there, 0);
    if (warp == kCopyWarp) request(expected_rows, rows - expected_rows);
    parity = 1;
  }
  __syncthreads();  // the query and the fresh row
  mbarrier_wait(keys_there, parity);

  const int key_row = tid / 2, half = tid % 2;
  auto* const p = reinterpret_cast<float*>(shared + at.p());
  auto* const maxima = reinterpret_cast<std::uint32_t*>(shared + at.maxima());
  auto* const sums = reinterpret_cast<float*>(shared + at.sums());
  const remote_floats partials_to_merge(shared + at.partial(), results_there, 0);
  const remote_floats stats_to_merge(shared + at.stat(), results_there, 0);
  const remote_floats stats_to_account(shared + at.stat(), results_there, 1);
  const remote_floats logits_to_account(shared + at.logit(), results_there, 1);
#pragma unroll 1
  for (int h = 0; h < group_size; ++h) {
    float logit = -INFINITY;
    if (key_row < rows) {
      const std::byte* row_key = key_row == fresh_row
                                     ? reinterpret_cast<std::byte*>(fresh_key)
                                     : shared + at.keys() + key_row * layout::kKeyPitch;
      float dot[2] = {0.0f, 0.0f};
#pragma unroll(Resident ? 4 : 1)
      for (int i = 0; i < HeadDim / 16; ++i) {
        const int vector = 2 * i + half;
        const uint4 words = *reinterpret_cast<const uint4*>(row_key + 16 * vector);
        const float* x = query + h * HeadDim + 8 * vector;
        const float4 low = *reinterpret_cast<const float4*>(x);
        const float4 high = *reinterpret_cast<const float4*>(x + 4);
        const float4 k0 = unpack_four<T>(make_uint2(words.x, words.y));
        const float4 k1 = unpack_four<T>(make_uint2(words.z, words.w));
        dot[0] = fmaf(k0.x, low.x, fmaf(k0.y, low.y, fmaf(k0.z, low.z, fmaf(k0.w, low.w, dot[0]))));
        dot[1] =
            fmaf(k1.x, high.x, fmaf(k1.y, high.y, fmaf(k1.z, high.z, fmaf(k1.w, high.w, dot[1]))));
      }
      logit = dot[0] + dot[1];
    }
    logit = (logit + __shfl_xor_sync(0xffffffffu, logit, 1)) * scale_log2;
    // Ordered as integers the maximum is one instruction; a NaN is below everything.
    const std::uint32_t warp_maximum = __reduce_max_sync(0xffffffffu, ordered_score(logit));
    if (lane == 0) maxima[warp] = warp_maximum;
    __syncthreads();
    const float maximum =
        from_ordered_score(__reduce_max_sync(0xffffffffu, maxima[tid % layout::kWarps]));
    if (half == 0) p[key_row] = key_row < rows ? fast_exp2(logit - maximum) : 0.0f;
    if (scored && half == 0 && key_row < rows) {
      logits_to_account.send(h * cache.capacity + begin + key_row, logit);
    }
    if (h == 0) mbarrier_wait(values_there, parity);
    __syncthreads();

    if (warp == kStateWarp) {  // early, so that the accounts are done while outputs are merged
      float mass = 0.0f;
#pragma unroll
      for (int r = 0; r < kClusterSplitSlots; r += 32) mass += p[r + lane];
      mass = warp_reduce(mass, [](float a, float b) { return a + b; });
      if (lane < 2) {
        const int i = 2 * (h * splits + split) + lane;
        stats_to_merge.send(i, lane == 0 ? maximum : mass);
        if (scored) stats_to_account.send(i, lane == 0 ? maximum : mass);
      }
    }
    const int group = tid / layout::kColumns, column = tid % layout::kColumns * 4;
    if (group < layout::kGroups) {
      float4 acc = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
      for (int r = group; r < rows; r += layout::kGroups) {
        const T* row_value = r == fresh_row
                                 ? fresh_value
                                 : reinterpret_cast<const T*>(shared + at.values()) + r * HeadDim;
        const float4 v = unpack_four<T>(*reinterpret_cast<const uint2*>(row_value + column));
        const float weight = p[r];
        acc.x = fmaf(weight, v.x, acc.x);
        acc.y = fmaf(weight, v.y, acc.y);
        acc.z = fmaf(weight, v.z, acc.z);
        acc.w = fmaf(weight, v.w, acc.w);
      }
      *reinterpret_cast<float4*>(sums + group * HeadDim + column) = acc;
    }
    __syncthreads();
    if (tid < HeadDim) {
      float total = 0.0f;
#pragma unroll
      for (int g = 0; g < layout::kGroups; ++g) total += sums[g * HeadDim + tid];
      partials_to_merge.send((h * splits + split) * HeadDim + tid, total);
    }
  }
  // Nothing may be under way when a block ends.
  cp_async_wait<0>();
  if (at.evict_every > 1) cluster_arrive();  // then rows of keys and values move, the fresh one too
  if (at.evict_every > 1) cluster_wait();
  if (!merges && !accounts) return;
  mbarrier_wait(results_there, 0);

  const auto* stat = reinterpret_cast<const float2*>(shared + at.stat());
  if (merges) {
    if (!scored && tid == 0) state.free_slot[row] = live_slots();
    T* output = out.data + sequence * out.batch_stride + kv_head * group_size * out.head_stride;
    const auto* partial = reinterpret_cast<const float*>(shared + at.partial());
#pragma unroll 1
    for (int h = 0; h < group_size; ++h) {
      const h2o_softmax softmax = h2o_softmax::merge(stat, splits);
      if (tid < HeadDim) {
        float sum = 0.0f;
#pragma unroll 4
        for (int s = 0; s < splits; ++s) {
          // An empty split has no maximum to compare.
          const float weight = stat[s].y == 0.0f ? 0.0f : softmax.probability(stat[s].x);
          sum = fmaf(weight, partial[s * HeadDim + tid], sum);
        }
        output[tid] = from_float<T>(sum);
      }
      stat += splits;
      partial += splits * HeadDim;
      output += out.head_stride;
    }
  }
  if (!accounts) return;
  auto* const softmax = reinterpret_cast<h2o_softmax*>(shared + at.softmax());
  for (int h = warp; h < group_size; h += layout::kWarps) {
    const h2o_softmax merged = h2o_softmax::merge(stat + h * splits, splits);
    if (lane == 0) softmax[h] = merged;
  }
  const int live = live_slots(), fresh = fresh_slot(), step = step_of_token;
  // By the thread that has waited for the copy.
  if (tid == fresh % kThreads) position[fresh] = step;
  __syncthreads();
  const h2o_bookkeeping bookkeeping{state.score + slots,
                                    state.position + slots,
                                    state.free_slot + row,
                                    cache.k + slots * HeadDim,
                                    cache.v + slots * HeadDim,
                                    HeadDim / 8,
                                    step,
                                    live,
                                    sequence_policy(policy, state.capacity_of, sequence)};
  block_h2o_account<kThreads, 2>(
      bookkeeping, fresh, score, position, reinterpret_cast<const float*>(shared + at.logit()),
      cache.capacity, group_size, [&](int h) { return softmax[h]; }, shared + at.evict());
#endif
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
