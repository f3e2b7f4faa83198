// Filling and stepping an H2O cache.
#pragma once

#include <cuda_runtime.h>

#include <waterweight/detail/h2o/launch.cuh>
#include <waterweight/device_info.cuh>
#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// After prefill: moves the prompt's keys and values into the slots of one layer and sets its
/// state.
///
/// A prompt of at most capacity - 1 tokens is kept whole. A longer one keeps its first budget.sinks
/// tokens, its last budget.recent, and the budget.heavy highest column sums of the rest (on a tie
/// the lower position leaves; NaN counts as lowest). Kept tokens fill slots 0, 1, ... in ascending
/// position; the other slots get position -1 and score 0. free_slot = number kept. Also sets
/// length[b] = number kept and step[b] = lengths[b]: the same for every layer. k, v: [batch,
/// tokens, kv_heads, head_dim], k rotated. column_sums: [batch, kv_heads, tokens]. state.score
/// null: column_sums may be null and every prompt must fit (tokens < capacity). lengths as in
/// h2o_prefill_attention (null: all `tokens`).
template <class T>
[[nodiscard]] cudaError_t h2o_select_and_compact(detail::type_identity_t<heads_view<const T>> k,
                                                 detail::type_identity_t<heads_view<const T>> v,
                                                 const float* column_sums,
                                                 const std::int32_t* lengths,
                                                 kv_cache_view<T> cache, h2o_state_view state,
                                                 h2o_budget budget, cudaStream_t stream) noexcept {
  return detail::launch_select_and_compact<T>(k, v, column_sums, lengths, cache, state, budget,
                                              stream);
}

/// Ends a token: step[b] += 1, length[b] = min(length[b] + 1, capacity - 1). Once per token, after
/// the last layer.
[[nodiscard]] inline cudaError_t h2o_advance(h2o_state_view state, int batch, int capacity,
                                             cudaStream_t stream) noexcept {
  return detail::launch_advance(state, batch, capacity, stream);
}

/// Bytes of the keys and values of one layer.
constexpr std::size_t kv_cache_bytes(int batch, int kv_heads, int capacity, int head_dim,
                                     std::size_t element_bytes) noexcept {
  return std::size_t{2} * batch * kv_heads * capacity * head_dim * element_bytes;
}

WATERWEIGHT_ARCH_NAMESPACE_END
