// Attention over a prompt (with the column sums H2O starts from) and over a slot cache.
#pragma once

#include <cuda_runtime.h>

#include <waterweight/detail/attention/launch.cuh>
#include <waterweight/device_info.cuh>
#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// Turns x in place by its rotary angles: token t of sequence b sits at first_position[b] + t.
/// T: __half or __nv_bfloat16. first_position: [batch] device memory, or null for 0.
template <class T>
[[nodiscard]] cudaError_t rotary_embed(heads_view<T> x, rotary_view rotary,
                                       const std::int32_t* first_position,
                                       cudaStream_t stream) noexcept {
  return detail::launch_rotary<T>(x, nullptr, rotary, first_position, stream);
}

/// The same of x and y, say queries and keys, in one launch. y: [batch, tokens, at most as many
/// heads, head_dim]; must not overlap x.
template <class T>
[[nodiscard]] cudaError_t rotary_embed(heads_view<T> x, heads_view<T> y, rotary_view rotary,
                                       const std::int32_t* first_position,
                                       cudaStream_t stream) noexcept {
  return detail::launch_rotary<T>(x, &y, rotary, first_position, stream);
}

/// Causal attention of a prompt, scale 1/sqrt(head_dim), softmax in fp32, no N x N matrix.
///
/// q, out: [batch, tokens, heads, head_dim]; k, v: [batch, tokens, kv_heads, head_dim]; q and k
/// already rotated; heads a multiple of kv_heads; head_dim 32, 64, 80, 96, 128 or 256; data and
/// strides multiples of 16 bytes. out must not overlap the inputs.
/// lengths: [batch] device memory, tokens of each sequence (<= tokens), or null: all are full.
/// Rows at or beyond a sequence's length are written as zeros in `out` and 0 in the others.
/// lse: [batch, heads, tokens] fp32 natural log-sum-exp of the scaled scores; null to skip (then
/// column_sums must be null too).
/// column_sums: [batch, kv_heads, tokens] fp32: for each key the softmax mass it received from all
/// queries of its head group: H2O's initial scores; null to skip. At most 8388480 tokens with them.
/// Cost: 2*head_dim*tokens^2 FLOP per head, half as much again for column sums; O(tokens) memory.
/// Deterministic (one owner per output). After FlashAttention-2 (Dao 2023) and H2O (2023).
template <class T>
[[nodiscard]] cudaError_t h2o_prefill_attention(const device_info& device,
                                                detail::type_identity_t<heads_view<const T>> q,
                                                detail::type_identity_t<heads_view<const T>> k,
                                                detail::type_identity_t<heads_view<const T>> v,
                                                const std::int32_t* lengths, heads_view<T> out,
                                                float* lse, float* column_sums,
                                                cudaStream_t stream) noexcept {
  return detail::launch_prefill<T>(device, q, k, v, lengths, out, lse, column_sums, stream);
}

/// The column sums alone, from the lse that h2o_prefill_attention left: for those who want them
/// later, say of several layers in one launch, as sequences of one batch. Arguments, cost per head
/// and results as there; lse and column_sums must not be null. X: T or const T.
template <class X>
[[nodiscard]] cudaError_t h2o_column_sums(heads_view<X> q, detail::type_identity_t<heads_view<X>> k,
                                          const std::int32_t* lengths, const float* lse,
                                          float* column_sums, cudaStream_t stream) noexcept {
  return detail::launch_column_sums<std::remove_const_t<X>>(q, k, lengths, lse, column_sums,
                                                            stream);
}

/// One decode step of one layer: rotate q and k_new at position step[b], append (k, v) to
/// free_slot, attend over the live slots, add the softmax mass each slot received to its score,
/// and, where each head keeps its own keys, evict policy.evict_every slots of a cache that became
/// full.
///
/// q, out: [batch, 1, heads, head_dim]; k_new, v_new: [batch, 1, kv_heads, head_dim], not yet
/// rotated; cache and state (one layer) as in types.hpp; policy.capacity() must equal
/// cache.capacity unless state.score is null (then the policy is ignored). step and length are
/// read, not changed: call h2o_advance once per token after the last layer.
/// Evicted: lowest score among slots that are neither sinks nor among the last `recent` positions
/// (position > step - recent), lowest position on a tie; a NaN score counts as lowest.
/// With a granularity other than per_head nothing is evicted here: h2o_evict must follow, before
/// h2o_advance.
/// ws: at least h2o_decode_workspace_bytes(batch, heads, capacity, head_dim), 16-byte aligned.
/// early: early_read::cache lets keys and values be fetched before the kernel ahead has ended. In a
/// decode step that kernel is a projection, and the promise holds.
/// Cost: reads length * 2 * head_dim * sizeof(T) per KV head, in one launch; from compute
/// capability 9.0 on scored caches of up to 1024 slots are read whole, live or not, where at most
/// eight query heads share a KV head.
/// Deterministic: the slots of a head are divided and merged by the cache's shape alone, whatever
/// the batch.
/// Errors: cudaErrorInvalidValue as everywhere (short workspace, more slots than fit); else the
/// launch's own code.
template <class T>
[[nodiscard]] cudaError_t h2o_decode_attention(const device_info& device,
                                               detail::type_identity_t<heads_view<const T>> q,
                                               detail::type_identity_t<heads_view<const T>> k_new,
                                               detail::type_identity_t<heads_view<const T>> v_new,
                                               rotary_view rotary, kv_cache_view<T> cache,
                                               h2o_state_view state, h2o_policy policy,
                                               heads_view<T> out, workspace ws, cudaStream_t stream,
                                               early_read early = early_read::nothing) noexcept {
  return detail::launch_decode<T>(device, q, k_new, v_new, rotary, cache, state, policy, out, ws,
                                  stream, early);
}

/// Workspace of h2o_decode_attention for caches of up to this many sequences, query heads and
/// slots; all layers may share it. Never 0.
constexpr std::size_t h2o_decode_workspace_bytes(int batch, int heads, int capacity,
                                                 int head_dim) noexcept {
  // Per query head: logits, and per split a partial output and two numbers; per KV head (at most as
  // many) a counter; each of the four parts rounded up to 16 bytes.
  const std::size_t per_head =
      sizeof(float) * (static_cast<std::size_t>(capacity) +
                       static_cast<std::size_t>(detail::kMaxDecodeSplits) * (head_dim + 2) + 1);
  return static_cast<std::size_t>(batch) * heads * per_head + 4 * 16;
}

WATERWEIGHT_ARCH_NAMESPACE_END
