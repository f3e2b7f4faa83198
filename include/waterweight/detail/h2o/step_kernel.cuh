// The parts of a decode step for those who bring their own attention: accumulate, evict, advance.
// Kernels without a type to vary are templates only so that no header defines one twice.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/attention/common.cuh>
#include <waterweight/detail/h2o/keep_sets.cuh>
#include <waterweight/device/h2o_evict.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// The slots of one head as a step finds them, the new token in free_slot included.
struct step_slots {
  std::int64_t first;  ///< of the head's slots in the layer's arrays
  int fresh;
  int live;

  __device__ __forceinline__ step_slots(const h2o_state_view& state, std::int64_t row, int sequence,
                                        int capacity)
      : first(row * capacity) {
    live = min(max(state.length[sequence], 0) + 1, capacity);
    fresh = min(max(state.free_slot[row], 0), live - 1);
  }

  /// One thread per slot: adds `mass`, entering the token where the slot is its own.
  __device__ __forceinline__ void add(const h2o_state_view& state, int sequence, int slot,
                                      float mass) const {
    float* const score = state.score + first + slot;
    if (slot == fresh) state.position[first + slot] = state.step[sequence];
    *score = (slot == fresh ? 0.0f : *score) + mass;
  }
};

inline constexpr int kAccumulateThreads = 128;

/// One thread per slot: x = slot, y = KV head, z = sequence.
template <class P>
__global__ void __launch_bounds__(kAccumulateThreads)
    accumulate_kernel(matrix_view<const P> probabilities, int group_size, h2o_state_view state) {
  const int kv_head = blockIdx.y, sequence = blockIdx.z;
  const std::int64_t row = std::int64_t{sequence} * gridDim.y + kv_head;
  const step_slots slots(state, row, sequence, static_cast<int>(probabilities.cols));
  const int slot = blockIdx.x * kAccumulateThreads + threadIdx.x;
  if (slot >= slots.live) return;
  float mass = 0.0f;
  for (int h = 0; h < group_size; ++h) {
    mass += to_float(probabilities.data[(row * group_size + h) * probabilities.ld + slot]);
  }
  slots.add(state, sequence, slot, mass);
}

/// Lanes that share a key of accumulate_lse_kernel.
inline constexpr int kKeyLanes = 4;
inline constexpr int kKeysPerBlock = kAccumulateThreads / kKeyLanes;

/// Four lanes per slot: x = 32 slots, y = KV head, z = sequence. A key is read once for all query
/// heads of its group.
template <class T, int HeadDim>
__global__ void __launch_bounds__(kAccumulateThreads)
    accumulate_lse_kernel(heads_view<const T> q, const float* lse, kv_cache_view<T> cache,
                          h2o_state_view state, float scale_log2) {
  constexpr int kVectors = HeadDim / 8, kRounds = (kVectors + kKeyLanes - 1) / kKeyLanes;
  __shared__ float query[HeadDim];
  const int kv_head = blockIdx.y, sequence = blockIdx.z;
  const int group_size = q.heads / cache.kv_heads, lane = threadIdx.x % kKeyLanes;
  const std::int64_t row = std::int64_t{sequence} * cache.kv_heads + kv_head;
  const step_slots slots(state, row, sequence, cache.capacity);
  const int slot = blockIdx.x * kKeysPerBlock + threadIdx.x / kKeyLanes;
  const bool alive = slot < slots.live;

  uint4 key[kRounds];
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int vector = r * kKeyLanes + lane;
    key[r] = make_uint4(0, 0, 0, 0);
    if (alive && vector < kVectors) {
      key[r] = load_l2(cache.k + (slots.first + slot) * HeadDim + vector * 8);
    }
  }
  float mass = 0.0f;
  for (int h = 0; h < group_size; ++h) {
    const int head = kv_head * group_size + h;
    const T* source = q.data + sequence * q.batch_stride + head * q.head_stride;
    __syncthreads();  // the last head's query has been read
    for (int d = threadIdx.x; d < HeadDim; d += kAccumulateThreads) query[d] = to_float(source[d]);
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int vector = r * kKeyLanes + lane;
      if (vector >= kVectors) continue;
      const std::uint32_t words[4] = {key[r].x, key[r].y, key[r].z, key[r].w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 pair = unpack_pair<T>(words[w]);
        sum = fmaf(pair.x, query[vector * 8 + 2 * w], sum);
        sum = fmaf(pair.y, query[vector * 8 + 2 * w + 1], sum);
      }
    }
#pragma unroll
    for (int offset = kKeyLanes / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    const float log_sum = lse[std::int64_t{sequence} * q.heads + head] * kLog2E;
    mass += exp2f(fmaf(sum, scale_log2, -log_sum));
  }
  if (alive && lane == 0) slots.add(state, sequence, slot, mass);
}

inline constexpr int kEvictThreads = 128;

/// One block per (KV head, sequence, layer). `sums`: [keep sets, batch, capacity], or null where
/// each head's own scores decide.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    evict_kernel(uint4* k, uint4* v, int row_vectors, int capacity, h2o_state_view state,
                 h2o_policy policy, const float* sums) {
  extern __shared__ __align__(16) std::byte shared[];
  const int kv_head = blockIdx.x, sequence = blockIdx.y, layer = blockIdx.z;
  const std::int64_t row =
      layer * state.layer_stride + std::int64_t{sequence} * gridDim.x + kv_head;
  const step_slots slots(state, row, sequence, capacity);
  const h2o_bookkeeping head{state.score + slots.first,
                             state.position + slots.first,
                             state.free_slot + row,
                             k + slots.first * row_vectors,
                             v + slots.first * row_vectors,
                             row_vectors,
                             state.step[sequence],
                             slots.live,
                             sequence_policy(policy, state.capacity_of, sequence)};
  const float* deciding = sums == nullptr
                              ? head.score
                              : sums + keep_set_row(policy, layer, sequence, gridDim.y) * capacity;
  const auto score_of = [&](int slot) { return deciding[slot]; };
  h2o_candidate candidate;
  if (head.full()) candidate = thread_candidate<Threads>(head, score_of);
  block_h2o_evict<Threads>(head, score_of, candidate, shared);
}

/// One thread per sequence.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    advance_kernel(h2o_state_view state, h2o_policy policy, int batch, int capacity) {
  follow_earlier_kernels();
  const int sequence = blockIdx.x * Threads + threadIdx.x;
  if (sequence >= batch) return;
  const int full = state.capacity_of == nullptr
                       ? capacity
                       : policy.bounded(state.capacity_of[sequence]).capacity();
  const int live = min(state.length[sequence] + 1, capacity);
  state.step[sequence] += 1;
  state.length[sequence] = live < full ? live : live - policy.evict_every;
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
