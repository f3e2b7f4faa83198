// The H2O decode step of caches of up to a thousand slots on sm_90 and newer: a cluster of blocks
// per KV head, one split each, which meet in shared memory instead of in the workspace.
//
// At batch 1 the step is a chain of latencies, and every link taken out counts. Keys and values are
// asked for before the kernels ahead have ended (into shared memory where the caller allows it,
// else into L2 only, so that nothing stale is ever read), and so is the state of the sequence, as a
// guess to be confirmed: the angles of the rotation are there when the query comes. A warp has 16
// slots to itself, for keys and values: all blocks know the softmax of all chunks while the values
// are still being summed, so the books are kept beside the attention, not after it, by one more
// warp of each block. Among many sequences a step waits behind the copies of its neighbours: there
// the small loads go first, and fewer, smaller blocks let more of them reside.
#pragma once

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/arch/cluster.cuh>
#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/attention/cluster_books.cuh>
#include <waterweight/detail/attention/cluster_decode_shape.cuh>
#include <waterweight/detail/attention/common.cuh>
#include <waterweight/device/rotary.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Warps that attend, one or two chunks each; one more keeps the books.
template <int HeadDim, bool Resident>
inline constexpr int kClusterAttendWarps =
    Resident || HeadDim > 128 ? kSplitChunks : kSplitChunks / 2;
template <int HeadDim, bool Resident>
inline constexpr int kClusterThreads = 32 * (kClusterAttendWarps<HeadDim, Resident> + 1);

/// Cluster of gridDim.x blocks = the splits of KV head blockIdx.y of sequence blockIdx.z. Split s
/// is slots [s * kSplitSlots, (s + 1) * kSplitSlots) as far as they are live, so what it gives does
/// not depend on the capacity. Block 0 merges the outputs.
/// Resident: all blocks fit on the card at once, one of each step per SM, and so start before their
/// turn. early: keys and values may then be read.
template <class T, int HeadDim, bool Resident>
__global__ void __launch_bounds__(kClusterThreads<HeadDim, Resident>, HeadDim > 128 ? 1
                                                                      : Resident
                                                                          ? 2
                                                                          : (HeadDim <= 96 ? 5 : 3))
    cluster_decode_kernel(heads_view<const T> q, heads_view<const T> k_new,
                          heads_view<const T> v_new, rotary_view rotary, kv_cache_view<T> cache,
                          h2o_state_view state, h2o_policy policy, heads_view<T> out,
                          float scale_log2, bool early) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using layout = cluster_decode_shape<HeadDim>;
  constexpr int kWarps = kClusterAttendWarps<HeadDim, Resident>;
  constexpr int kThreads = kClusterThreads<HeadDim, Resident>, kAttendThreads = 32 * kWarps;
  constexpr int kChunks = kSplitChunks / kWarps;         // of a warp
  constexpr int kWeightsBarrier = 1, kEvictBarrier = 2;  // 0 is everybody's
  enum { kLength, kStep, kFreeSlot, kPositionWords };    // in the order of the lanes that read
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ __align__(8) std::uint64_t barriers[5];
  std::uint64_t* const keys_there = barriers;
  std::uint64_t* const values_there = barriers + 1;
  std::uint64_t* const stats_there = barriers + 2;
  std::uint64_t* const candidates_there = barriers + 3;
  std::uint64_t* const sums_there = barriers + 4;
  // Read by one warp and passed on: a word that every warp of the card asks for at once comes late.
  __shared__ std::int32_t guess[kPositionWords], now[kPositionWords];
  __shared__ int expected_rows;
  const int kv_head = blockIdx.y, sequence = blockIdx.z, split = blockIdx.x, splits = gridDim.x;
  const int group_size = q.heads / k_new.heads, tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const bool scored = state.score != nullptr, merges = split == 0, keeps_books = warp == kWarps;
  const layout at{group_size, splits, cache.capacity, scored ? policy.evict_every : 1};
  const std::int64_t row = std::int64_t{sequence} * cache.kv_heads + kv_head;
  const std::int64_t slots = row * cache.capacity;
  const int begin = split * kSplitSlots;
  T* const k_split = cache.k + (slots + begin) * HeadDim;
  T* const v_split = cache.v + (slots + begin) * HeadDim;
  const auto rows_from = [&](int first, int tokens) {
    return min(max(min(tokens + 1, cache.capacity) - first, 0), kSplitSlots);
  };
  const auto request = [&](int first, int rows) {
    bulk_copy_rows<layout::kRowBytes, layout::kPitch>(shared + at.keys(), k_split, first, rows,
                                                      keys_there);
    bulk_copy_rows<layout::kRowBytes, layout::kPitch>(shared + at.values(), v_split, first, rows,
                                                      values_there);
  };
  const std::int32_t* const word_of_lane = lane == kLength ? state.length + sequence
                                           : lane == kStep ? state.step + sequence
                                                           : state.free_slot + row;
  int expected = 0;  // rows that this warp has asked for
  if (keeps_books) {
    if (lane == 0) {
      mbarrier_init(keys_there, 1);
      mbarrier_init(values_there, 1);
      mbarrier_init(stats_there, 1 + kWarps);
      mbarrier_init(candidates_there, 1);
      mbarrier_init(sums_there, 1);
      mbarrier_init_fence();
      mbarrier_arrive_expect(stats_there, sizeof(chunk_stat) * kSplitChunks * splits * group_size);
      mbarrier_arrive_expect(candidates_there, sizeof(unsigned long long) * splits);
      mbarrier_arrive_expect(sums_there, sizeof(float) * HeadDim * splits * group_size);
    }
    __syncwarp();
    if constexpr (Resident) {
      // A hint: the kernels ahead may be about to change it.
      const std::int32_t word = lane < kPositionWords ? __ldcg(word_of_lane) : 0;
      if (lane < kPositionWords) guess[lane] = word;
      expected = rows_from(begin, __shfl_sync(0xffffffffu, word, kLength));
    } else if (scored || early) {
      // A cache with a budget is full but for its beginnings: worth no wait for the length.
      expected = rows_from(begin, scored ? cache.capacity : __ldcg(state.length + sequence));
    }
    if (early) {
      request(0, expected);
    } else if (Resident && lane == 0 && expected > 0) {
      bulk_prefetch(k_split, expected * layout::kRowBytes);
      bulk_prefetch(v_split, expected * layout::kRowBytes);
    }
  } else if (Resident && scored && tid < kSplitSlots / 32 && begin + tid * 32 < cache.capacity) {
    prefetch_l2(state.score + slots + begin + tid * 32);  // a line of each
    prefetch_l2(state.position + slots + begin + tid * 32);
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
  cluster_arrive_relaxed();
  int turned = 0;  // the position that the rotation is made for
  if constexpr (Resident) {
    __syncthreads();
    turned = guess[kStep];
    rotation.set_position(turned);
    cluster_wait();  // the others have started and made their barriers
  }
  wait_for_earlier_kernels();
  // Not earlier: the kernel after the next one would take its place on the SMs too, and leave the
  // next one's blocks to crowd on what is free.
  launch_dependents();

  // Everything the step depends on is under way before the first of it is used.
  float q_own = 0.0f, q_partner = 0.0f, key_own = 0.0f, key_partner = 0.0f;
  T new_value{};
  if (tid < HeadDim) {
    q_own = to_float(q_heads[tid]);
    q_partner = to_float(q_heads[rotation.partner()]);
    key_own = to_float(key[tid]);
    key_partner = to_float(key[rotation.partner()]);
    new_value = value[tid];
  }
  split_books books(begin);
  if (keeps_books) {
    std::int32_t word = 0;
    if (lane < kPositionWords) word = __ldcg(word_of_lane);
    if (!early) {
      if (!Resident && !scored) {
        expected = rows_from(begin, __shfl_sync(0xffffffffu, word, kLength));
      }
      request(0, expected);
    }
    if (scored) books.load(state.score + slots, state.position + slots, cache.capacity);
    if (lane < kPositionWords) now[lane] = word;
    if (lane == 0) expected_rows = expected;
  }
  const auto chunk_of = [&](int i) { return warp + i * kWarps; };
  const auto tile_of = [&](int tile, int i) {
    return shared + tile + chunk_of(i) * layout::kChunkBytes;
  };
  chunk_rows<HeadDim> keys, values;
  const auto load_keys = [&](int i, int fresh_row, const T* fresh_key) {
    keys.load_keys(tile_of(at.keys(), i), layout::kPitch, fresh_row - chunk_of(i) * kChunkSlots,
                   fresh_key);
  };
  const auto load_values = [&](int i, int fresh_row, const T* fresh_value, int rows) {
    const int first = chunk_of(i) * kChunkSlots;
    values.load_values(tile_of(at.values(), i), layout::kPitch, fresh_row - first, fresh_value,
                       rows - first);
  };
  const bool loads_early = Resident && early;
  if (loads_early && !keeps_books) {  // while the query is on its way
    mbarrier_wait(keys_there, 0);
    load_keys(0, -1, nullptr);
    mbarrier_wait(values_there, 0);
    load_values(0, -1, nullptr, rows_from(begin, guess[kLength]));
  }

  auto* const query = reinterpret_cast<T*>(shared + at.query());
  auto* const fresh_key = reinterpret_cast<T*>(shared + at.fresh());
  T* const fresh_value = fresh_key + HeadDim;
  if constexpr (!Resident) {
    cluster_wait();
    __syncthreads();
    turned = now[kStep];
    rotation.set_position(turned);
  }
  for (;;) {
    if (tid < HeadDim) {
      // Not contracted, as that could differ from kernel to kernel.
      store_query<T, HeadDim>(query, 0, tid, __fmul_rn(rotation(q_own, q_partner), scale_log2));
      fresh_key[tid] = from_float<T>(rotation(key_own, key_partner));
      fresh_value[tid] = new_value;
#pragma unroll 1
      for (int h = 1; h < group_size; ++h) {
        const T* other = q_heads + h * q.head_stride;
        store_query<T, HeadDim>(
            query, h, tid,
            __fmul_rn(rotation(to_float(other[tid]), to_float(other[rotation.partner()])),
                      scale_log2));
      }
    }
    __syncthreads();  // where the sequence stands, the query and the fresh row
    if (turned == now[kStep]) break;
    turned = now[kStep];  // the guess was wrong
    rotation.set_position(turned);
  }

  const int live = min(now[kLength] + 1, cache.capacity);
  const int fresh = min(max(now[kFreeSlot], 0), live - 1), fresh_row = fresh - begin;
  const int rows = rows_from(begin, now[kLength]);
  std::uint32_t parity = 0;
  if (rows > expected_rows) {  // a sequence that has grown, or changed, since the guess
    mbarrier_wait(keys_there, 0);
    mbarrier_wait(values_there, 0);
    if (keeps_books) request(expected_rows, rows - expected_rows);
    parity = 1;
  }
  auto* const p = reinterpret_cast<float*>(shared + at.p());
  auto* const weights = reinterpret_cast<float*>(shared + at.weights());
  auto* const stats = reinterpret_cast<chunk_stat*>(shared + at.stats());
  auto* const sums = reinterpret_cast<float*>(shared + at.sums());
  const auto outputs_of = [&](int chunk) {  // where its keys were
    return reinterpret_cast<float*>(shared + at.keys() + chunk * layout::kChunkBytes);
  };
  const auto bookkeeping = [&] {
    return h2o_bookkeeping{state.score + slots,
                           state.position + slots,
                           state.free_slot + row,
                           cache.k + slots * HeadDim,
                           cache.v + slots * HeadDim,
                           HeadDim / 8,
                           turned,
                           live,
                           sequence_policy(policy, state.capacity_of, sequence)};
  };
  const bool own_keys = scored && policy.granularity == h2o_granularity::per_head;

  if (keeps_books) {
    if (fresh_row >= 0 && fresh_row < rows) {
      for (int i = lane; i < HeadDim / 8; i += 32) {
        reinterpret_cast<uint4*>(k_split + fresh_row * HeadDim)[i] =
            reinterpret_cast<const uint4*>(fresh_key)[i];
        reinterpret_cast<uint4*>(v_split + fresh_row * HeadDim)[i] =
            reinterpret_cast<const uint4*>(fresh_value)[i];
      }
    }
    mbarrier_wait(stats_there, 0);
    const int chunks = splits * kSplitChunks;
#pragma unroll 1
    for (int h = 0; h < group_size; ++h) {
      merge_chunks(stats + h * chunks, splits, split, weights + h * kSplitChunks);
    }
    named_barrier_arrive(kWeightsBarrier, kThreads);
    if (!scored) {
      if (merges && lane == 0) {
        state.position[slots + fresh] = turned;
        state.free_slot[row] = live;
      }
    } else {
      __syncwarp();
      const h2o_bookkeeping head = bookkeeping();
      const bool evicts = own_keys && policy.evict_every == 1 && head.full();
      books.account(head, fresh, p, weights, group_size, evicts);
      if (evicts) {
        books.evict(head, split, splits,
                    reinterpret_cast<unsigned long long*>(shared + at.candidates()),
                    candidates_there);
      } else if (own_keys && policy.evict_every == 1 && merges && lane == 0) {
        *head.free_slot = live;
      }
    }
  } else {
    const int head = lane / 4, t = lane % 4;
    chunk_softmax<T> softmax[kChunks];
    if (!loads_early || parity > 0) mbarrier_wait(keys_there, parity);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int first = chunk_of(i) * kChunkSlots;
      if (!loads_early || rows != expected_rows || fresh_row / kChunkSlots == chunk_of(i)) {
        load_keys(i, fresh_row, fresh_key);
      }
      softmax[i].compute(query, group_size, keys, rows - first);
      if (head < group_size) {
        const int stat = (head * splits + split) * kSplitChunks + chunk_of(i);
        for (int rank = t; rank < splits; rank += 4) {
          remote_array(stats, stats_there, rank).send(stat, {softmax[i].maximum, softmax[i].sum});
        }
        if (scored) {
          auto* const p_of_lane = reinterpret_cast<float2*>(p + head * kSplitSlots + first) + t;
          p_of_lane[0] = make_float2(softmax[i].p[0], softmax[i].p[1]);
          p_of_lane[kChunkSlots / 4] = make_float2(softmax[i].p[2], softmax[i].p[3]);
        }
      }
    }
    __syncwarp();
    if (lane == 0) mbarrier_arrive(stats_there);  // this warp's exponentials are there
    if (!loads_early || parity > 0) mbarrier_wait(values_there, parity);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      if (!loads_early || rows != expected_rows || fresh_row / kChunkSlots == chunk_of(i)) {
        load_values(i, fresh_row, fresh_value, rows);
      }
      softmax[i].weigh(values, group_size, outputs_of(chunk_of(i)));
    }
    named_barrier(kWeightsBarrier, kThreads);
    const remote_array<float> sums_to_merge(sums, sums_there, 0);
    const int elements = group_size * HeadDim;
#pragma unroll 1
    for (int i = tid; i < elements; i += kAttendThreads) {
      const float* const weight = weights + i / HeadDim * kSplitChunks;
      float sum = 0.0f;
#pragma unroll
      for (int c = 0; c < kSplitChunks; ++c) sum = fmaf(weight[c], outputs_of(c)[i], sum);
      sums_to_merge.send(split * elements + i, sum);
    }
    if (merges) {
      mbarrier_wait(sums_there, 0);
      T* const output =
          out.data + sequence * out.batch_stride + kv_head * group_size * out.head_stride;
#pragma unroll 1
      for (int i = tid; i < elements; i += kAttendThreads) {
        float sum = sums[i];
#pragma unroll 4
        for (int s = 1; s < splits; ++s) sum += sums[s * elements + i];
        output[i / HeadDim * out.head_stride + i % HeadDim] = from_float<T>(sum);
      }
    }
  }
  if (own_keys && policy.evict_every > 1) {
    cluster_arrive();  // all scores are there, and the fresh row, which may move
    cluster_wait();
    if (!merges || tid >= kClusterEvictThreads) return;
    const h2o_bookkeeping head = bookkeeping();
    const auto score_of = [&](int slot) { return head.score[slot]; };
    h2o_candidate candidate;
    if (head.full()) candidate = thread_candidate<kClusterEvictThreads>(head, score_of);
    block_h2o_evict<kClusterEvictThreads, kEvictBarrier>(head, score_of, candidate, shared);
  }
#endif
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
