// Weights on their way through shared memory: some warps fill a ring of tiles by bulk copies, the
// others take the tiles in order.
//
// The ring runs ahead of what the block computes, also across points where the block waits for
// others: memory goes on delivering meanwhile. How much may be under way at a time is limited
// separately from the depth, because memory answers in order: whatever else the SM asks for queues
// behind every outstanding copy.
#pragma once

#include <cstddef>
#include <cstdint>

#include <waterweight/detail/arch/bulk_copy.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// The ring of one block: `slots` tiles of up to `tile_bytes` (a multiple of 16), all shared
/// memory. How many may be under way at a time: at most ring_most_in_flight() of ring_order.hpp.
struct weight_ring {
  std::byte* data;       ///< [slots, tile_bytes], 16-byte aligned
  std::uint64_t* full;   ///< [slots]
  std::uint64_t* empty;  ///< [slots]
  int slots;
  int tile_bytes;

  __device__ __forceinline__ std::byte* slot(int i) const { return data + i * tile_bytes; }

  /// By one thread, followed by a barrier of the block. readers: threads that arrive at `empty` for
  /// a tile that has been read; one of a warp is enough if __syncwarp() comes before.
  __device__ __forceinline__ void init(int readers = 1) const {
    for (int i = 0; i < slots; ++i) {
      detail::mbarrier_init(full + i, 1);
      detail::mbarrier_init(empty + i, static_cast<std::uint32_t>(readers));
    }
    detail::mbarrier_init_fence();
  }
};

/// A place in the sequence of tiles.
struct ring_cursor {
  int slot = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance(int by, int slots) {
    slot += by;
    while (slot >= slots) {
      slot -= slots;
      parity ^= 1;
    }
  }
};

/// The side that fills: a thread, or one of `producers` of different warps that take turns, the one
/// that pushes tiles index, index + producers, ... They wait for each other's tiles to land. A
/// thread of its own, because the copies of several of a warp are started one after the other,
/// which takes longer than computing their addresses. For most_in_flight see weight_ring.
class ring_producer {
 public:
  __device__ __forceinline__ ring_producer(const weight_ring& ring, int most_in_flight,
                                           int index = 0, int producers = 1)
      : ring_(ring),
        due_(index + 1 - most_in_flight),
        producers_(producers),
        policy_(detail::evict_first_policy()) {
    next_.advance(index, ring.slots);
  }

  /// The next tile: Pieces times `bytes` (a multiple of 16), `stride` bytes apart in memory.
  /// idle(): called every now and then as long as the ring has no room for it.
  template <int Pieces = 1, class Idle>
  __device__ __forceinline__ void push(const void* first, int bytes, std::int64_t stride,
                                       const Idle& idle) {
    acquire(idle);
    std::uint64_t* const full = ring_.full + next_.slot;
    std::byte* const slot = ring_.slot(next_.slot);
    detail::mbarrier_arrive_expect(full, static_cast<std::uint32_t>(Pieces * bytes));
#pragma unroll
    for (int i = 0; i < Pieces; ++i) {
      detail::bulk_copy(slot + i * bytes, static_cast<const std::byte*>(first) + i * stride,
                        static_cast<std::uint32_t>(bytes), full, policy_);
    }
    next_.advance(producers_, ring_.slots);
  }
  template <int Pieces = 1>
  __device__ __forceinline__ void push(const void* first, int bytes, std::int64_t stride = 0) {
    push<Pieces>(first, bytes, stride, [] {});
  }

 private:
  static constexpr std::uint32_t kIdleNanoseconds = 600;  ///< memory's time to answer

  template <class Idle>
  __device__ __forceinline__ void acquire(const Idle& idle) {
    for (; due_ > 0; --due_) {
      detail::mbarrier_wait(ring_.full + landed_.slot, landed_.parity);
      landed_.advance(1, ring_.slots);
    }
    due_ += producers_;
    while (
        !detail::mbarrier_wait_for(ring_.empty + next_.slot, next_.parity ^ 1, kIdleNanoseconds)) {
      idle();
    }
  }

  weight_ring ring_;
  int due_;  ///< tiles that must have landed, besides those seen, before the next one is pushed
  int producers_;
  std::uint64_t policy_;
  ring_cursor next_, landed_;
};

WATERWEIGHT_ARCH_NAMESPACE_END
