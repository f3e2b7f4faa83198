// Block-level H2O eviction: which slots of one KV head leave, and how the others close the gaps.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/device/reduce.cuh>
#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// One KV head's slots, what is known of them and the policy of its sequence.
struct h2o_bookkeeping {
  float* score;            ///< [capacity]
  std::int32_t* position;  ///< [capacity]
  std::int32_t* free_slot;
  void* k;            ///< [capacity, row_vectors] of 16 bytes; used with evict_every > 1
  void* v;            ///< the same
  int row_vectors;    ///< 16-byte vectors of a row
  int step;           ///< absolute position of this token
  int live;           ///< live slots, this token's included
  h2o_policy policy;  ///< of this sequence: see h2o_state_view::capacity_of

  __device__ __forceinline__ bool full() const { return live >= policy.capacity(); }
};

/// The policy of one sequence.
__device__ __forceinline__ h2o_policy sequence_policy(const h2o_policy& policy,
                                                      const std::int32_t* capacity_of,
                                                      int sequence) {
  return capacity_of == nullptr ? policy : policy.bounded(capacity_of[sequence]);
}

/// The slot that leaves first among those offered.
struct h2o_candidate {
  unsigned long long key = kNoVictim;
  int slot = 0;

  /// Sinks, recent tokens and empty slots (position -1) are never candidates.
  __device__ __forceinline__ void offer(const h2o_bookkeeping& head, int candidate, int position,
                                        float score) {
    if (position < head.policy.sinks || position > head.step - head.policy.recent) return;
    const unsigned long long candidate_key = victim_key(score, position);
    if (candidate_key < key) {
      key = candidate_key;
      slot = candidate;
    }
  }
};

/// The best candidate among the slots of the calling thread: threadIdx.x, threadIdx.x + Threads,
/// ...
template <int Threads, class Scores>
__device__ __forceinline__ h2o_candidate thread_candidate(const h2o_bookkeeping& head,
                                                          const Scores& score_of) {
  h2o_candidate candidate;
  for (int slot = threadIdx.x; slot < head.live; slot += Threads) {
    candidate.offer(head, slot, head.position[slot], score_of(slot));
  }
  return candidate;
}

/// Shared memory of block_h2o_evict; a multiple of 8.
template <int Threads>
WATERWEIGHT_HOST_DEVICE constexpr std::size_t h2o_evict_shared_bytes(int evict_every) {
  return sizeof(unsigned long long) *
         (Threads / 32 + (evict_every > 1 ? static_cast<std::size_t>(evict_every) : 0));
}

/// After an eviction of several: survivors above the new length move into the holes below it, both
/// in the order of slots. `lists`: 2 * evict_every ints of shared memory, `scratch`: Threads / 32.
template <int Threads, int Barrier = 0>
__device__ void block_h2o_close_gaps(const h2o_bookkeeping& head, int* lists, int* scratch) {
  const int evicted = head.policy.evict_every, length = head.live - evicted;
  int* const to = lists;
  int* const from = lists + evicted;
  const int holes = block_list<Threads, Barrier>(
      0, length, [&](int slot) { return head.position[slot] < 0; }, to, evicted, scratch);
  const int survivors = block_list<Threads, Barrier>(
      length, head.live, [&](int slot) { return head.position[slot] >= 0; }, from, evicted,
      scratch);
  const int moves = min(holes, survivors);
  group_sync<Threads, Barrier>();  // both lists are there
  // No slot is both a source and a target.
  for (int i = threadIdx.x; i < moves * head.row_vectors; i += Threads) {
    const std::int64_t column = i % head.row_vectors, move = i / head.row_vectors;
    const std::int64_t target = std::int64_t{to[move]} * head.row_vectors + column;
    const std::int64_t source = std::int64_t{from[move]} * head.row_vectors + column;
    for (void* rows : {head.k, head.v}) {
      static_cast<uint4*>(rows)[target] = detail::load_l2(static_cast<uint4*>(rows) + source);
    }
  }
  for (int i = threadIdx.x; i < moves; i += Threads) {
    head.position[to[i]] = head.position[from[i]];
    head.score[to[i]] = head.score[from[i]];
  }
  group_sync<Threads, Barrier>();  // everybody has read the sources
  for (int slot = length + threadIdx.x; slot < head.live; slot += Threads) {
    head.position[slot] = -1;
    head.score[slot] = 0.0f;
  }
  if (threadIdx.x == 0) *head.free_slot = length;
}

/// If the head is full, policy.evict_every slots leave: the lowest score_of(slot), lowest position
/// on a tie, NaN below everything. Otherwise the next empty slot becomes the free one.
/// `candidate`: thread_candidate of the calling thread, where the head is full. `shared`:
/// h2o_evict_shared_bytes, 8-byte aligned. Collective.
template <int Threads, int Barrier = 0, class Scores>
__device__ __forceinline__ void block_h2o_evict(const h2o_bookkeeping& head, const Scores& score_of,
                                                h2o_candidate candidate, void* shared) {
  if (!head.full()) {
    if (threadIdx.x == 0) *head.free_slot = head.live;
    return;
  }
  auto* const scratch = static_cast<unsigned long long*>(shared);
  const int count = head.policy.evict_every;
  for (int i = 0; i < count; ++i) {
    const unsigned long long winner = block_min_key<Threads, Barrier>(candidate.key, scratch);
    // Positions are unique, so exactly one thread holds the winner.
    if (winner == candidate.key && winner != kNoVictim) {
      head.position[candidate.slot] = -1;
      head.score[candidate.slot] = 0.0f;
      if (count == 1) {
        *head.free_slot = candidate.slot;
      } else {
        candidate = thread_candidate<Threads>(head, score_of);
      }
    }
    if (count > 1) group_sync<Threads, Barrier>();  // scratch is written again; positions are there
  }
  if (count > 1) {
    block_h2o_close_gaps<Threads, Barrier>(head, reinterpret_cast<int*>(scratch + Threads / 32),
                                           reinterpret_cast<int*>(scratch));
  }
}

WATERWEIGHT_ARCH_NAMESPACE_END
