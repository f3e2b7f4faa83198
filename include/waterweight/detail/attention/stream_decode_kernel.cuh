// The H2O decode step of many heads on sm_90 and newer: one block per SM goes through head after
// head, and its keys and values stream through a ring that never waits for what is done with them.
//
// A cluster per head (cluster_decode_kernel.cuh) is the fastest for few heads, but a block there
// asks for everything at its beginning and for nothing at its end: with many heads memory is asked
// for less than it could deliver. Here warps have jobs, and heads pass through them as through a
// pipeline:
//
//   produce   starts the copies of keys and values
//   prepare   rotates query and key, writes key and value to the cache
//   attend    a chunk of 16 slots at a time, each warp for itself
//   book      puts the chunks together, keeps the scores, evicts
//
// Every sum is made of the same parts in the same order as there: a sequence gives the same bits
// alone and in company.
#pragma once

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/arch/named_barrier.cuh>
#include <waterweight/detail/attention/cluster_books.cuh>
#include <waterweight/detail/attention/common.cuh>
#include <waterweight/detail/attention/stream_decode_shape.cuh>
#include <waterweight/detail/attention/stream_heads.cuh>
#include <waterweight/device/rotary.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// What the warps of a block share.
template <class T, int HeadDim>
struct stream_decoder {
  using shape = stream_decode_shape<HeadDim>;
  using chunk = typename shape::chunk;
  static constexpr int kHeads = shape::kHeads;
  // See stream_heads: heads in the ring, between it and the books, and those asked for ahead.
  static_assert(shape::kPlaces / 2 + 2 + kHeads + 3 <= stream_heads::kRemembered, "none forgotten");

  struct barriers {
    std::uint64_t filled[shape::kPlaces], read[shape::kPlaces];
    std::uint64_t prepared[kHeads], attended[kHeads], booked[kHeads];
    stream_heads::storage heads;
  };
  struct scratch {
    stream_head_info info[kHeads];
    float weights[kStreamBookWarps][kStreamBookWarps];
    unsigned long long candidate_keys[kHeads][kStreamBookWarps];
    int candidate_slots[kHeads][kStreamBookWarps];
  };

  const kv_cache_view<T>& cache;
  const h2o_state_view& state;
  std::byte* shared;
  barriers* at;
  scratch* small;
  stream_heads heads;

  /// Calls f(head, buffer, parity of the buffer's use, number of the head in this block).
  template <class F>
  __device__ __forceinline__ void for_each_head(const F& f) const {
#pragma unroll 1
    for (int head, i = 0; (head = heads[i]) >= 0; ++i) {
      f(head, i % kHeads, static_cast<std::uint32_t>(i / kHeads) & 1u, i);
    }
  }
  __device__ __forceinline__ int places_of_head() const {  // of keys
    return (cache.capacity + shape::kPlaceSlots - 1) / shape::kPlaceSlots;
  }
  __device__ __forceinline__ int splits() const { return cluster_splits(cache.capacity); }
  __device__ __forceinline__ T* query(int buffer) const {
    return reinterpret_cast<T*>(shared + shape::kQuery) + buffer * 2 * HeadDim;
  }
  __device__ __forceinline__ T* fresh_key(int buffer) const {  // the value behind it
    return reinterpret_cast<T*>(shared + shape::kFresh) + buffer * 2 * HeadDim;
  }
  __device__ __forceinline__ float* p(int buffer) const {
    return reinterpret_cast<float*>(shared + shape::kP) + buffer * kStreamMaxChunks * kChunkSlots;
  }
  __device__ __forceinline__ chunk_stat* stats(int buffer) const {
    return reinterpret_cast<chunk_stat*>(shared + shape::kStats) + buffer * kStreamMaxChunks;
  }
  __device__ __forceinline__ float* outputs(int buffer, int of_chunk) const {
    return reinterpret_cast<float*>(shared + shape::kOutputs) +
           (buffer * kStreamMaxChunks + of_chunk) * HeadDim;
  }
  __device__ __forceinline__ std::byte* place(int index) const {
    return shared + shape::kRing + index * shape::kPlaceBytes;
  }

  /// How far rows lie beyond a multiple of kPlaceAlignment bytes, in memory and in their place.
  static __device__ __forceinline__ int beyond(const T* rows) {
    return static_cast<int>(reinterpret_cast<std::uintptr_t>(rows) % shape::kPlaceAlignment);
  }

  __device__ __forceinline__ void init() const {
    // Each thread arrives itself: no order among lanes to rely on.
    for (int i = 0; i < shape::kPlaces; ++i) {
      mbarrier_init(at->filled + i, 1);
      mbarrier_init(at->read + i, 32 * shape::kPlaceChunks);
    }
    for (int i = 0; i < kHeads; ++i) {
      mbarrier_init(at->prepared + i, 32 * shape::kPrepareWarps);
      mbarrier_init(at->attended + i, shape::kFirstBook);
      mbarrier_init(at->booked + i, kStreamBookThreads);
    }
    heads.init();
    mbarrier_init_fence();
  }

  /// The warp that fills the ring: of each head places of keys and of values in turn.
  __device__ __forceinline__ void produce() const {
    int number = 0;
    const auto push = [&](const T* rows, int count) {
      const auto wait = [](std::uint64_t* barriers_of, int of) {
        mbarrier_wait(barriers_of + of % shape::kPlaces,
                      static_cast<std::uint32_t>(of / shape::kPlaces) & 1u);
      };
      if (number >= shape::kInFlight) wait(at->filled, number - shape::kInFlight);
      if (number >= shape::kPlaces) wait(at->read, number - shape::kPlaces);
      const int index = number % shape::kPlaces;
      bulk_copy_rows<chunk::kRowBytes, chunk::kPitch>(place(index) + beyond(rows), rows, 0, count,
                                                      at->filled + index);
      ++number;
    };
    heads.hand_out([&](int head) {
      for (int slot = 0; slot < cache.capacity; slot += shape::kPlaceSlots) {
        const std::int64_t first = (std::int64_t{head} * cache.capacity + slot) * HeadDim;
        const int count = min(shape::kPlaceSlots, cache.capacity - slot);
        push(cache.k + first, count);
        push(cache.v + first, count);
      }
    });
  }

  /// A thread per element of a row.
  __device__ __forceinline__ void prepare(const heads_view<const T>& q,
                                          const heads_view<const T>& k_new,
                                          const heads_view<const T>& v_new,
                                          const rotary_view& rotary, float scale_log2) const {
    const int d = static_cast<int>(threadIdx.x) - shape::kFirstPrepare;
    const int element = min(d, HeadDim - 1);
    element_rotation rotation(rotary, element);
    struct request {
      T q_own, q_partner, key_own, key_partner, value;
      int step, length, free_slot;
    } next;
    // A head ahead: what is asked for waits behind the copies under way.
    const auto ask = [&](int row) {
      if (row < 0) return;
      const int sequence = row / cache.kv_heads, head = row % cache.kv_heads;
      const T* const q_head = q.data + sequence * q.batch_stride + head * q.head_stride;
      const T* const key = k_new.data + sequence * k_new.batch_stride + head * k_new.head_stride;
      const T* const value = v_new.data + sequence * v_new.batch_stride + head * v_new.head_stride;
      next = {q_head[element],
              q_head[rotation.partner()],
              key[element],
              key[rotation.partner()],
              value[element],
              __ldcg(state.step + sequence),
              __ldcg(state.length + sequence),
              __ldcg(state.free_slot + row)};
    };
    wait_for_earlier_kernels();
    ask(heads[0]);
    for_each_head([&](int row, int buffer, std::uint32_t parity, int i) {
      const request now = next;
      ask(heads[i + 1]);
      const int live = min(now.length + 1, cache.capacity);
      const int fresh = min(max(now.free_slot, 0), live - 1);
      rotation.set_position(now.step);
      // Not contracted, as that could differ from kernel to kernel.
      const float query_element =
          __fmul_rn(rotation(to_float(now.q_own), to_float(now.q_partner)), scale_log2);
      const T new_key = from_float<T>(rotation(to_float(now.key_own), to_float(now.key_partner)));
      // Until then the head before in this buffer needs what is there.
      mbarrier_wait(at->booked + buffer, parity ^ 1);
      if (d < HeadDim) {
        store_query<T, HeadDim>(query(buffer), 0, d, query_element);
        fresh_key(buffer)[d] = new_key;
        fresh_key(buffer)[HeadDim + d] = now.value;
        const std::int64_t to = (std::int64_t{row} * cache.capacity + fresh) * HeadDim + d;
        cache.k[to] = new_key;
        cache.v[to] = now.value;
      }
      if (d == 0) small->info[buffer] = {now.step, live, fresh};
      mbarrier_arrive(at->prepared + buffer);
    });
  }

  __device__ __forceinline__ void attend() const {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32;
    const int pairs = places_of_head();
    const int chunks = max(splits() * kSplitChunks, pairs * shape::kPlaceChunks);
    for_each_head([&](int row, int buffer, std::uint32_t parity, int i) {
      const std::int64_t elements = std::int64_t{row} * cache.capacity * HeadDim;
      mbarrier_wait(at->prepared + buffer, parity);  // so its buffers are free
      const int live = small->info[buffer].live, fresh = small->info[buffer].fresh;
#pragma unroll 1
      for (int c = warp; c < chunks; c += kStreamAttendWarps) {
        const int first = c * kChunkSlots;
        const bool empty = c >= pairs * shape::kPlaceChunks;
        chunk_softmax<T> softmax;
        softmax.maximum = -INFINITY;
        softmax.sum = 0.0f;
        const int number = 2 * (i * pairs + c / shape::kPlaceChunks);
        const auto with = [&](int of, const T* head, const T* fresh_row, const auto& f) {
          const int index = of % shape::kPlaces;
          mbarrier_wait(at->filled + index, static_cast<std::uint32_t>(of / shape::kPlaces) & 1u);
          std::byte* const rows = place(index) + beyond(head);
          // Stores what it makes of the rows, and so not until they are loaded, for which an
          // arrival would not wait: see after_loading.
          f(chunk_rows{rows + c % shape::kPlaceChunks * chunk::kChunkBytes, chunk::kPitch,
                       fresh - first, fresh_row});
          mbarrier_arrive(at->read + index);
        };
        const auto store_softmax = [&] {
          if (lane >= kStreamWriters) return;
          if (lane == 0) stats(buffer)[c] = {softmax.maximum, softmax.sum};
          softmax.store(p(buffer) + first);
        };
        if (empty) {
          store_softmax();
        } else {
          with(number, cache.k + elements, fresh_key(buffer), [&](const chunk_rows& keys) {
            softmax.template compute<HeadDim>(query(buffer), 1, keys, live - first);
            store_softmax();
          });
        }
        if (!empty) {
          with(number + 1, cache.v + elements, fresh_key(buffer) + HeadDim,
               [&](const chunk_rows& values) {
                 softmax.template weigh<HeadDim>(values, live - first, 1, outputs(buffer, c));
               });
        } else if (lane < kStreamWriters) {
          for (int d = lane; d < HeadDim; d += kStreamWriters) outputs(buffer, c)[d] = 0.0f;
        }
      }
      mbarrier_arrive(at->attended + buffer);
    });
  }

  /// A warp per split for the scores, a thread per element for the output.
  __device__ __forceinline__ void book(const h2o_policy& policy, const heads_view<T>& out) const {
    constexpr int kBookBarrier = 1;
    const int thread = static_cast<int>(threadIdx.x) - shape::kFirstBook;
    const int split = thread / 32, count = splits();
    const bool own_keys = policy.granularity == h2o_granularity::per_head;
    const auto books_of = [&](int row) {
      const std::int64_t slots = std::int64_t{row} * cache.capacity;
      return split_books(state.score + slots, state.position + slots, split * kSplitSlots);
    };
    wait_for_earlier_kernels();
    split_books next = books_of(heads[0]);
    next.load(cache.capacity);
    for_each_head([&](int row, int buffer, std::uint32_t parity, int i) {
      const int sequence = row / cache.kv_heads, head_of = row % cache.kv_heads;
      const std::int64_t slots = std::int64_t{row} * cache.capacity;
      split_books books = next;
      if (const int after = heads[i + 1]; after >= 0) {
        next = books_of(after);
        next.load(cache.capacity);
      }
      mbarrier_wait(at->prepared + buffer, parity);
      const stream_head_info info = small->info[buffer];
      const h2o_bookkeeping head{state.score + slots,
                                 state.position + slots,
                                 state.free_slot + row,
                                 nullptr,
                                 nullptr,
                                 0,
                                 info.step,
                                 info.live,
                                 sequence_policy(policy, state.capacity_of, sequence)};
      books.enter(head, info.fresh);
      const bool evicts = own_keys && head.full();
      if (thread == 0 && own_keys && !head.full()) *head.free_slot = info.live;
      mbarrier_wait(at->attended + buffer, parity);
      const chunk_stat* const of_head = stats(buffer);
      const chunk_merge merge(of_head, count);
      float* const weights = small->weights[split];
      merge.of_splits(of_head, count, weights);
      __syncwarp();
      if (thread < HeadDim) {
        float sum = 0.0f;
#pragma unroll 1
        for (int s = 0; s < count; ++s) sum = fmaf(weights[s], of_split(buffer, s, thread), sum);
        out.data[sequence * out.batch_stride + head_of * out.head_stride + thread] =
            from_float<T>(sum);
      }
      if (split < count) books.add(p(buffer) + split * kSplitSlots, merge, split);
      if (evicts) {
        unsigned long long* const keys = small->candidate_keys[buffer];
        int* const candidate_slots = small->candidate_slots[buffer];
        if (split < count) {
          split_candidate candidate;
          const bool holds = books.choose(candidate);
          if (holds) {
            keys[split] = candidate.key;
            candidate_slots[split] = candidate.slot;
          }
          books.store(info.live, info.fresh,
                      holds && candidate.key != kNoVictim ? candidate.slot : -1);
        }
        named_barrier(kBookBarrier, kStreamBookThreads);
        if (split == 0) evict_candidate(head, keys, candidate_slots, count);
      } else if (split < count) {
        books.store(info.live, info.fresh);
      }
      __syncwarp();  // all have read `weights`
      mbarrier_arrive(at->booked + buffer);
    });
  }

 private:
  /// Element d of what a split has put together relative to its own maximum.
  __device__ __forceinline__ float of_split(int buffer, int split, int d) const {
    const chunk_stat* const of = stats(buffer) + split * kSplitChunks;
    float maximum = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int c = 0; c < kSplitChunks; ++c) maximum = fmaxf(maximum, of[c].maximum);
#pragma unroll
    for (int c = 0; c < kSplitChunks; ++c) {
      // An empty chunk has no maximum to compare.
      const float weight = of[c].maximum == -INFINITY ? 0.0f : fast_exp2(of[c].maximum - maximum);
      sum = fmaf(weight, outputs(buffer, split * kSplitChunks + c)[d], sum);
    }
    return sum;
  }
};

#endif

/// For scored caches, query heads that have keys of their own, and evictions of one slot at a time
/// or none here. early: keys and values may be read before earlier kernels have ended. counters:
/// two of the workspace's.
template <class T, int HeadDim>
__global__ void __launch_bounds__(stream_decode_shape<HeadDim>::kThreads, 1)
    stream_decode_kernel(heads_view<const T> q, heads_view<const T> k_new,
                         heads_view<const T> v_new, rotary_view rotary, kv_cache_view<T> cache,
                         h2o_state_view state, h2o_policy policy, heads_view<T> out,
                         float scale_log2, bool early, unsigned* counters) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using decoder = stream_decoder<T, HeadDim>;
  using shape = stream_decode_shape<HeadDim>;
  extern __shared__ __align__(128) std::byte head_memory[];  // as cluster_decode_shape
  __shared__ typename decoder::barriers barriers;
  __shared__ typename decoder::scratch small;
  const decoder self{cache,     state,  head_memory,
                     &barriers, &small, {&barriers.heads, cache.batch * cache.kv_heads, counters}};
  if (threadIdx.x == 0) self.init();
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < shape::kFirstBook) {
    self.attend();
  } else if (thread < shape::kFirstPrepare) {
    self.book(policy, out);
  } else if (thread < shape::kProducer) {
    self.prepare(q, k_new, v_new, rotary, scale_log2);
  } else {
    if (!early) wait_for_earlier_kernels();
    self.produce();
    // Not earlier: a block of the next kernel could only wait, on an SM that others could use.
    launch_dependents();
  }
#endif
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
