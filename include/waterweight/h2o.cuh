// Filling and stepping an H2O cache, whole or in parts for those who bring their own attention.
//
// A token with h2o_decode_attention (attention.cuh), each layer: h2o_decode_attention; then, unless
// the granularity is per_head, h2o_evict; at last h2o_advance. With an attention of your own: write
// the rotated key and the value to free_slot, attend, h2o_accumulate_scores, h2o_evict,
// h2o_advance.
#pragma once

#include <cuda_runtime.h>

#include <waterweight/detail/h2o/launch.cuh>
#include <waterweight/device_info.cuh>
#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// Workspace of h2o_select (columns = tokens) and h2o_evict (columns = capacity) over this many
/// layers. 0 where each head keeps its own keys: then {} will do.
constexpr std::size_t h2o_workspace_bytes(h2o_policy policy, int layers, int batch,
                                          int columns) noexcept {
  return sizeof(float) * static_cast<std::size_t>(detail::keep_sets(policy, layers)) * batch *
         columns;
}

/// After prefill: which tokens stay. Sets the state of all layers that `scores` and `state` cover.
///
/// A prompt of at most policy.budget() tokens is kept whole. A longer one keeps its first `sinks`
/// tokens, its last `recent`, and the `heavy` highest scores of the rest (on a tie the lower
/// position leaves; NaN counts as lowest); a shared set is chosen by its heads' sum (see
/// h2o_granularity). With state.capacity_of a sequence's
/// own policy is policy.bounded(capacity_of[b]).
/// Kept tokens fill slots 0, 1, ... in ascending position, each with its own head's score; the
/// other slots get position -1 and score 0. free_slot = number kept. Also sets length[b] = number
/// kept and step[b] = lengths[b]. scores: see types.hpp; not null; as many layers as state.
/// lengths: [batch] device memory, tokens of each sequence (<= scores.tokens), or null: all are
/// full. policy.capacity() must equal capacity. ws: h2o_workspace_bytes(policy, scores.layers,
/// scores.batch, scores.tokens). Errors: cudaErrorInvalidValue as everywhere, nothing launched;
/// else the launch's own code.
[[nodiscard]] inline cudaError_t h2o_select(h2o_score_view scores, const std::int32_t* lengths,
                                            h2o_state_view state, int capacity, h2o_policy policy,
                                            workspace ws, cudaStream_t stream) noexcept {
  return detail::launch_select(scores, lengths, state, capacity, policy, ws, stream);
}

/// Copies rows of one layer by position: slot s of the cache gets the key and the value of token
/// position[s]; a slot whose position is negative, or not below k.tokens, is left as it is.
///
/// k, v: [batch, tokens, kv_heads, head_dim], k rotated; head_dim a multiple of 8; data and strides
/// multiples of 16 bytes; must not overlap the cache. position: [batch, kv_heads, capacity] device
/// memory, as h2o_select leaves it.
template <class T>
[[nodiscard]] cudaError_t h2o_compact(detail::type_identity_t<heads_view<const T>> k,
                                      detail::type_identity_t<heads_view<const T>> v,
                                      const std::int32_t* position, kv_cache_view<T> cache,
                                      cudaStream_t stream) noexcept {
  return detail::launch_compact<T>(k, v, position, cache, stream);
}

/// After prefill of the layers that `state` covers: h2o_select, then h2o_compact.
///
/// k, v: [layers * batch, tokens, kv_heads, head_dim]: the sequences of a layer behind those of the
/// layer before. column_sums: [layers, batch, kv_heads, tokens]. cache: of the first of the layers;
/// its batch is that of one layer, and K and V of a layer begin state.layer_stride * capacity *
/// head_dim elements after the one before. state.score null: column_sums may be null and every
/// prompt must fit and is kept whole (tokens < capacity). lengths as in h2o_select. per_model needs
/// all layers in one call. ws: h2o_workspace_bytes(policy, state.layers, cache.batch, tokens).
template <class T>
[[nodiscard]] cudaError_t h2o_select_and_compact(
    detail::type_identity_t<heads_view<const T>> k, detail::type_identity_t<heads_view<const T>> v,
    const float* column_sums, const std::int32_t* lengths, kv_cache_view<T> cache,
    h2o_state_view state, h2o_policy policy, workspace ws, cudaStream_t stream) noexcept {
  return detail::launch_select_and_compact<T>(k, v, column_sums, lengths, cache, state, policy, ws,
                                              stream);
}

/// Enters a decoded token and adds what it attended to: position[free_slot] = step[b], the score
/// there starts from 0, and the score of every live slot grows by its probability, summed over the
/// query heads of the KV head's group in their order, in fp32.
///
/// probabilities: [batch * heads, capacity], by slot, final (each row sums to 1 over the slots
/// [0, length[b] + 1)), float, __half or __nv_bfloat16; what it holds in other slots is not read.
/// heads (rows / batch) is a multiple of kv_heads. state: one layer. Launched once per layer.
template <class P>
[[nodiscard]] cudaError_t h2o_accumulate_scores(matrix_view<P> probabilities, int batch,
                                                int kv_heads, h2o_state_view state,
                                                cudaStream_t stream) noexcept {
  return detail::launch_accumulate<std::remove_const_t<P>>(probabilities, batch, kv_heads, state,
                                                           stream);
}

/// The same for attention that leaves only its log-sum-exp: the probability of slot s is
/// exp(q k[s] / sqrt(head_dim) - lse).
///
/// q: [batch, 1, heads, head_dim], rotated; heads a multiple of kv_heads; head_dim 32, 64, 80, 96,
/// 128 or 256. cache: the token's own key is already at free_slot; v is not read and may be null.
/// lse: [batch, heads] fp32, natural logarithm, of the scaled scores.
/// Cost: reads the live keys once per KV head.
template <class T>
[[nodiscard]] cudaError_t h2o_accumulate_scores(detail::type_identity_t<heads_view<const T>> q,
                                                const float* lse, kv_cache_view<T> cache,
                                                h2o_state_view state,
                                                cudaStream_t stream) noexcept {
  return detail::launch_accumulate_lse<T>(q, lse, cache, state, stream);
}

/// After the scores of a token: policy.evict_every slots leave every head of a sequence that became
/// full (length[b] + 1 live slots: as many as it may use); elsewhere the next empty slot becomes
/// free_slot. The rule is h2o_decode_attention's; with a shared set the same positions leave all
/// its heads, by the sum of their scores.
///
/// cache and state: of all layers of the model for per_model, of any number of layers otherwise; K
/// and V of a layer begin state.layer_stride * capacity * head_dim elements after the one before.
/// Not after an h2o_decode_attention that evicted (granularity per_head).
/// ws: h2o_workspace_bytes(policy, state.layers, cache.batch, cache.capacity).
/// Deterministic. Moves rows only with evict_every > 1, at most that many per head.
template <class T>
[[nodiscard]] cudaError_t h2o_evict(kv_cache_view<T> cache, h2o_state_view state, h2o_policy policy,
                                    workspace ws, cudaStream_t stream) noexcept {
  return detail::launch_evict<T>(cache, state, policy, ws, stream);
}

/// Ends a token, once, after the last layer: step[b] += 1; length[b] += 1, or, where the sequence
/// became full, length[b] = what the eviction left. policy: the one that evicts; h2o_policy{} for
/// plain attention. Of the state only step, length and capacity_of are used.
[[nodiscard]] inline cudaError_t h2o_advance(h2o_state_view state, int batch, int capacity,
                                             h2o_policy policy, cudaStream_t stream) noexcept {
  return detail::launch_advance(state, batch, capacity, policy, stream);
}

/// Bytes of the keys and values of one layer.
constexpr std::size_t kv_cache_bytes(int batch, int kv_heads, int capacity, int head_dim,
                                     std::size_t element_bytes) noexcept {
  return std::size_t{2} * batch * kv_heads * capacity * head_dim * element_bytes;
}

WATERWEIGHT_ARCH_NAMESPACE_END
