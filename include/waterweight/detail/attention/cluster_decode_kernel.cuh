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

/// Warps that attend, two chunks each where that leaves a thread per element of a row; one more
/// keeps the books. More warps would be faster on their own, but fewer could reside on an SM.
template <int HeadDim>
inline constexpr int kClusterAttendWarps = HeadDim > 128 ? kSplitChunks : kSplitChunks / 2;
template <int HeadDim>
inline constexpr int kClusterThreads = 32 * (kClusterAttendWarps<HeadDim> + 1);

/// Cluster of gridDim.x blocks = the splits of KV head blockIdx.y of sequence blockIdx.z. Split s
/// is slots [s * kSplitSlots, (s + 1) * kSplitSlots) as far as they are live, so what it gives does
/// not depend on the capacity. Block 0 merges the outputs.
/// Resident: all blocks fit on the card at once, those of the step before still running, and so
/// start before their turn. early: keys and values may then be read.
template <class T, int HeadDim, bool Resident>
__global__ void __launch_bounds__(kClusterThreads<HeadDim>, HeadDim > 128  ? 1
                                                            : HeadDim > 96 ? 3
                                                            : Resident     ? 4
                                                                           : 5)
    cluster_decode_kernel(heads_view<const T> q, heads_view<const T> k_new,
                          heads_view<const T> v_new, rotary_view rotary, kv_cache_view<T> cache,
                          h2o_state_view state, h2o_policy policy, heads_view<T> out,
                          float scale_log2, bool early) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using layout = cluster_decode_shape<HeadDim>;
  constexpr int kWarps = kClusterAttendWarps<HeadDim>, kAttendThreads = 32 * kWarps;
  constexpr int kAttendBarrier = 1, kEvictBarrier = 2;       // 0 is everybody's
  enum { kLength, kStep, kFreeSlot, kWords };                // in the order of the lanes that read
  extern __shared__ __align__(128) std::byte head_memory[];  // see cluster_decode_shape
  std::byte* const shared = head_memory;
  __shared__ __align__(8) std::uint64_t barriers[5];
  std::uint64_t* const keys_there = barriers;
  std::uint64_t* const values_there = barriers + 1;
  std::uint64_t* const stats_there = barriers + 2;
  std::uint64_t* const sums_there = barriers + 3;        // in block 0
  std::uint64_t* const candidates_there = barriers + 4;  // in block 0
  // Read by one warp and passed on: a word that every warp of the card asks for at once comes late.
  __shared__ std::int32_t guess[kWords], now[kWords];
  __shared__ int expected_rows;
  __shared__ bool guessed_wrong;
  const int kv_head = blockIdx.y, sequence = blockIdx.z, split = blockIdx.x, splits = gridDim.x;
  const int group_size = q.heads / k_new.heads, tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const bool scored = state.score != nullptr, merges = split == 0, keeps_books = warp == kWarps;
  const bool own_keys = scored && policy.granularity == h2o_granularity::per_head;
  const layout at{group_size, splits, cache.capacity, scored ? policy.evict_every : 1};
  const std::int64_t row = std::int64_t{sequence} * cache.kv_heads + kv_head;
  const std::int64_t slots = row * cache.capacity;
  const int begin = split * kSplitSlots;
  T* const k_split = cache.k + (slots + begin) * HeadDim;
  T* const v_split = cache.v + (slots + begin) * HeadDim;
  const auto rows_of = [&](int tokens) {
    return min(max(min(tokens + 1, cache.capacity) - begin, 0), kSplitSlots);
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
  auto* const query = reinterpret_cast<T*>(shared + at.query());
  auto* const fresh_key = reinterpret_cast<T*>(shared + at.fresh());
  T* const fresh_value = fresh_key + HeadDim;
  auto* const p = reinterpret_cast<float*>(shared + at.p());
  auto* const maxima = reinterpret_cast<float*>(shared + at.maxima());
  auto* const stats = reinterpret_cast<chunk_stat*>(shared + at.stats());
  auto* const weights = reinterpret_cast<float*>(shared + at.weights());
  auto* const candidate_keys = reinterpret_cast<unsigned long long*>(shared + at.candidate_keys());
  auto* const candidate_slots = reinterpret_cast<int*>(shared + at.candidate_slots());
  auto* const sums = reinterpret_cast<float*>(shared + at.sums());

  split_books books(state.score + slots, state.position + slots, begin);
  // What is small goes first: it would wait behind the copies.
  if (scored && warp == 0) books.prefetch(cache.capacity);
  int expected = 0;          // rows that this warp has asked for
  std::int32_t guessed = 0;  // a word per lane
  if (keeps_books) {
    if (lane == 0) {
      mbarrier_init(keys_there, 1);
      mbarrier_init(values_there, 1);
      // Each lane that stores arrives itself: no order among lanes to rely on.
      mbarrier_init(stats_there, 1 + 4 * group_size * kWarps);
      mbarrier_init(sums_there, 1 + splits);
      mbarrier_init(candidates_there, 1);
      mbarrier_init_fence();
    }
    __syncwarp();
    // A guess: the kernels ahead may be about to change it.
    if (Resident && lane < kWords) guessed = __ldcg(word_of_lane);
    if (scored) {
      // A cache with a budget is full but for its beginnings: worth no wait for the length.
      expected = rows_of(cache.capacity);
    } else if (Resident || early) {
      expected = rows_of(Resident ? __shfl_sync(0xffffffffu, guessed, kLength)
                                  : __ldcg(state.length + sequence));
    }
    if (early) {
      request(0, expected);
    } else if (Resident && lane == 0 && expected > 0) {
      bulk_prefetch(k_split, expected * layout::kRowBytes);
      bulk_prefetch(v_split, expected * layout::kRowBytes);
    }
    if (Resident && lane < kWords) guess[lane] = guessed;
    if (lane == 0) {
      expected_rows = expected;
      guessed_wrong = false;
      mbarrier_arrive_expect(stats_there, sizeof(chunk_stat) * kSplitChunks * splits * group_size);
      mbarrier_arrive_expect(sums_there, sizeof(float) * HeadDim * splits * group_size);
      mbarrier_arrive_expect(candidates_there,
                             (sizeof(*candidate_keys) + sizeof(*candidate_slots)) * splits);
    }
  }
  const T* const q_heads =
      q.data + sequence * q.batch_stride + kv_head * group_size * q.head_stride;
  const T* const key = k_new.data + sequence * k_new.batch_stride + kv_head * k_new.head_stride;
  const T* const value = v_new.data + sequence * v_new.batch_stride + kv_head * v_new.head_stride;
  element_rotation rotation(rotary, min(tid, HeadDim - 1));
  const T* const q_own_at = q_heads + tid;
  const T* const q_partner_at = q_heads + rotation.partner();
  const T* const key_own_at = key + tid;
  const T* const key_partner_at = key + rotation.partner();
  const T* const value_at = value + tid;
  const int elements = group_size * HeadDim;  // of the output
  const auto output_at = [&](int i) {
    return out.data + sequence * out.batch_stride +
           (kv_head * group_size + i / HeadDim) * out.head_stride + i % HeadDim;
  };
  T* const first_output = output_at(tid);
  if constexpr (Resident) {
    // The addresses are needed now then, and not worked out later. What they hold is not read.
    if (tid < HeadDim) {
      prefetch_l2(q_own_at);
      prefetch_l2(q_partner_at);
      prefetch_l2(key_own_at);
      prefetch_l2(key_partner_at);
      prefetch_l2(value_at);
    }
    // Parameters come through a cache that is cold at every launch: not when they are first needed.
    asm volatile("" ::"l"(state.capacity_of), "r"(policy.sinks), "r"(policy.heavy),
                 "r"(policy.recent), "r"(policy.evict_every), "f"(scale_log2), "l"(first_output));
  }
  cluster_arrive_relaxed();

  // Where the sequence stands, and what follows from it.
  int step = 0, live = 0, fresh = 0, fresh_row = 0, rows = 0;
  const auto stand_at = [&](const std::int32_t* words) {
    step = words[kStep];
    live = min(words[kLength] + 1, cache.capacity);
    fresh = min(max(words[kFreeSlot], 0), live - 1);
    fresh_row = fresh - begin;
    rows = rows_of(words[kLength]);
    rotation.set_position(step);
  };
  if constexpr (Resident) {
    __syncthreads();
    stand_at(guess);
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
    q_own = to_float(*q_own_at);
    q_partner = to_float(*q_partner_at);
    key_own = to_float(*key_own_at);
    key_partner = to_float(*key_partner_at);
    new_value = *value_at;
  }
  if (keeps_books) {
    const std::int32_t word = lane < kWords ? __ldcg(word_of_lane) : 0;
    if (scored) books.load(cache.capacity);
    if (!early) {
      if (!Resident && !scored) expected = rows_of(__shfl_sync(0xffffffffu, word, kLength));
      request(0, expected);
      if (lane == 0) expected_rows = expected;
    }
    if (lane < kWords) now[lane] = word;
    if (Resident && word != guessed) guessed_wrong = true;
  }
  const auto rotate = [&] {
    if (tid >= HeadDim) return;
    // Not contracted, as that could differ from kernel to kernel.
    store_query<T, HeadDim>(query, 0, tid, __fmul_rn(rotation(q_own, q_partner), scale_log2));
    fresh_key[tid] = from_float<T>(rotation(key_own, key_partner));
    fresh_value[tid] = new_value;
#pragma unroll 1
    for (int h = 1; h < group_size; ++h) {
      const float own = to_float(q_own_at[h * q.head_stride]);
      const float partner = to_float(q_partner_at[h * q.head_stride]);
      store_query<T, HeadDim>(query, h, tid, __fmul_rn(rotation(own, partner), scale_log2));
    }
  };
  if constexpr (!Resident) {
    cluster_wait();
    __syncthreads();
    stand_at(now);
  }
  rotate();
  __syncthreads();  // the query and the fresh row
  if (Resident && __builtin_expect(guessed_wrong, false)) {
    stand_at(now);
    rotate();
    __syncthreads();
  }
  std::uint32_t parity = 0;
  if (__builtin_expect(rows > expected_rows, false)) {  // grown, or changed, since the guess
    mbarrier_wait(keys_there, 0);
    mbarrier_wait(values_there, 0);
    if (keeps_books) request(expected_rows, rows - expected_rows);
    parity = 1;
  }

  if (keeps_books) {
    if (fresh_row >= 0 && fresh_row < rows) {
      for (int i = lane; i < HeadDim / 8; i += 32) {
        reinterpret_cast<uint4*>(k_split + fresh_row * HeadDim)[i] =
            reinterpret_cast<const uint4*>(fresh_key)[i];
        reinterpret_cast<uint4*>(v_split + fresh_row * HeadDim)[i] =
            reinterpret_cast<const uint4*>(fresh_value)[i];
      }
    }
    h2o_bookkeeping head{state.score + slots,
                         state.position + slots,
                         state.free_slot + row,
                         nullptr,
                         nullptr,
                         0,
                         step,
                         live,
                         policy};
    if (scored) {
      head.policy = sequence_policy(policy, state.capacity_of, sequence);
      books.enter(head, fresh);
    } else if (merges && lane == 0) {
      head.position[fresh] = step;
    }
    const bool evicts = own_keys && policy.evict_every == 1 && head.full();
    if (merges && lane == 0 && (!scored || (own_keys && !head.full()))) *head.free_slot = live;
    mbarrier_wait(stats_there, 0);
#pragma unroll 1
    for (int h = 0; h < group_size; ++h) {
      const chunk_stat* const of_head = stats + h * splits * kSplitChunks;
      const chunk_merge merge(of_head, splits);
      if (scored) books.add(p + h * kSplitSlots, merge, split);
      if (merges) merge.of_splits(of_head, splits, weights + h * splits);
    }
    if (merges && lane < splits) mbarrier_arrive(sums_there);  // its weights are there
    if (evicts) {
      split_candidate candidate;
      const bool holds = books.choose(candidate);
      if (holds) {
        remote_array(candidate_keys, candidates_there, 0).send(split, candidate.key);
        remote_array(candidate_slots, candidates_there, 0).send(split, candidate.slot);
      }
      books.store(live, fresh, holds && candidate.key != kNoVictim ? candidate.slot : -1);
      if (merges) {
        mbarrier_wait(candidates_there, 0);
        evict_candidate(head, candidate_keys, candidate_slots, splits);
      }
    } else if (scored) {
      books.store(live, fresh);
    }
  } else {
    const int head = lane / 4, t = lane % 4;
    const auto rows_in = [&](int tile, int chunk, const T* fresh_data) {
      return chunk_rows{shared + tile + chunk * layout::kChunkBytes, layout::kPitch,
                        fresh_row - chunk * kChunkSlots, fresh_data};
    };
    const auto outputs_of = [&](int chunk) {  // where its keys were
      return reinterpret_cast<float*>(shared + at.keys() + chunk * layout::kChunkBytes);
    };
    mbarrier_wait(keys_there, parity);
    // Both loops short, and the exponentials read again: what runs once per launch is fetched from
    // afar, and there are no registers to keep more.
#pragma unroll 1
    for (int chunk = warp; chunk < kSplitChunks; chunk += kWarps) {
      chunk_softmax<T> softmax;
      softmax.template compute<HeadDim>(query, group_size, rows_in(at.keys(), chunk, fresh_key),
                                        rows - chunk * kChunkSlots);
      if (head < group_size) {
        const int stat = (head * splits + split) * kSplitChunks + chunk;
        const chunk_stat own{softmax.maximum, softmax.sum};
        if (t < splits) remote_array(stats, stats_there, t).send(stat, own);
        if (t + 4 < splits) remote_array(stats, stats_there, t + 4).send(stat, own);
        softmax.store(p + head * kSplitSlots + chunk * kChunkSlots);
        if (t == 0) maxima[head * kSplitChunks + chunk] = own.maximum;
      }
      __syncwarp();
    }
    if (head < group_size) mbarrier_arrive(stats_there);  // its exponentials are there
    mbarrier_wait(values_there, parity);
#pragma unroll 1
    for (int chunk = warp; chunk < kSplitChunks; chunk += kWarps) {
      chunk_softmax<T> softmax;
      if (head < group_size) softmax.load(p + head * kSplitSlots + chunk * kChunkSlots);
      softmax.template weigh<HeadDim>(rows_in(at.values(), chunk, fresh_value),
                                      rows - chunk * kChunkSlots, group_size, outputs_of(chunk));
    }
    named_barrier(kAttendBarrier, kAttendThreads);
    const remote_array<float> sums_to_merge(sums, sums_there, 0);
#pragma unroll 1
    for (int i = tid; i < elements; i += kAttendThreads) {
      const float* const maximum_of = maxima + i / HeadDim * kSplitChunks;
      float maximum = -INFINITY, sum = 0.0f;
#pragma unroll
      for (int c = 0; c < kSplitChunks; ++c) maximum = fmaxf(maximum, maximum_of[c]);
#pragma unroll
      for (int c = 0; c < kSplitChunks; ++c) {
        // An empty chunk has no maximum to compare.
        const float weight = maximum_of[c] == -INFINITY ? 0.0f : fast_exp2(maximum_of[c] - maximum);
        sum = fmaf(weight, outputs_of(c)[i], sum);
      }
      sums_to_merge.send(split * elements + i, sum);
    }
    if (merges && tid < elements) {
      mbarrier_wait(sums_there, 0);
      T* to = Resident ? first_output : output_at(tid);
      for (int i = tid;;) {
        const float* const weight = weights + i / HeadDim * splits;
        float sum = 0.0f;
#pragma unroll 2
        for (int s = 0; s < splits; ++s) sum = fmaf(weight[s], sums[s * elements + i], sum);
        *to = from_float<T>(sum);
        i += kAttendThreads;
        if (i >= elements) break;
        to = output_at(i);
      }
    }
  }
  if (own_keys && policy.evict_every > 1) {
    cluster_arrive();  // all scores are there, and the fresh row, which may move
    cluster_wait();
    if (!merges || tid >= kClusterEvictThreads) return;
    // Read again: there are no registers to keep it in while attending.
    const h2o_bookkeeping head{state.score + slots,
                               state.position + slots,
                               state.free_slot + row,
                               cache.k + slots * HeadDim,
                               cache.v + slots * HeadDim,
                               HeadDim / 8,
                               now[kStep],
                               min(now[kLength] + 1, cache.capacity),
                               sequence_policy(policy, state.capacity_of, sequence)};
    const auto score_of = [&](int slot) { return head.score[slot]; };
    h2o_candidate candidate;
    if (head.full()) candidate = thread_candidate<kClusterEvictThreads>(head, score_of);
    block_h2o_evict<kClusterEvictThreads, kEvictBarrier>(head, score_of, candidate, shared);
  }
#endif
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
