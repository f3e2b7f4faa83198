// Host side of attention.cuh: checks and launches.
#pragma once

#include <algorithm>
#include <cmath>

#include <waterweight/detail/attention/cluster_decode_kernel.cuh>
#include <waterweight/detail/attention/column_sum_kernel.cuh>
#include <waterweight/detail/attention/decode_kernel.cuh>
#include <waterweight/detail/attention/prefill_kernel.cuh>
#include <waterweight/detail/attention/rotary_kernel.cuh>
#include <waterweight/detail/attention/stream_decode_kernel.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// y: null where only x turns.
template <class T>
cudaError_t launch_rotary(const heads_view<T>& x, const heads_view<T>* y, const rotary_view& rotary,
                          const std::int32_t* first_position, cudaStream_t stream) {
  static_assert(is_activation_v<T>, "rotary_embed takes __half or __nv_bfloat16");
  if (!valid_heads(x) || !valid_rotary(rotary, x.head_dim) || x.tokens > 65535) {
    return cudaErrorInvalidValue;
  }
  if (y != nullptr && (!valid_heads(*y) || !same_tokens(x, *y) || y->heads > x.heads)) {
    return cudaErrorInvalidValue;
  }
  if (rotary.dims == 0) return cudaSuccess;
  const std::int64_t pairs = std::int64_t{rotary.dims / 2} * x.heads;
  const dim3 grid(static_cast<unsigned>(ceil_div(pairs, kRotaryThreads)),
                  static_cast<unsigned>(x.tokens), static_cast<unsigned>(x.batch));
  return launch_following(rotary_kernel<T>, grid, kRotaryThreads, 0, stream, x,
                          y == nullptr ? heads_view<T>{} : *y, rotary, first_position);
}

template <class T>
float prefill_scale_log2(const heads_view<T>& q) {
  return kLog2E / std::sqrt(static_cast<float>(q.head_dim));
}

/// Keys, and values beside them, for queries of the same tokens.
template <class T>
bool valid_prompt_attention(const heads_view<const T>& q, const heads_view<const T>& k,
                            const heads_view<const T>& v) {
  return valid_heads(q) && valid_heads(k) && valid_heads(v) && same_tokens(q, k) &&
         same_tokens(q, v) && k.heads == v.heads && q.heads % k.heads == 0;
}

/// Where column sums can go: the grid's limit in z.
template <class T>
bool valid_column_sums(const heads_view<const T>& q, const float* lse) {
  return lse != nullptr && ceil_div(q.tokens, kColumnKeys) <= 65535;
}

/// early: the kernel ahead in the stream is one that reads q and k as they are.
template <class T>
cudaError_t enqueue_column_sums(int sm_count, const heads_view<const T>& q,
                                const heads_view<const T>& k, const std::int32_t* lengths,
                                const float* lse, float* column_sums, bool early,
                                cudaStream_t stream) {
  return dispatch_head_dim(q.head_dim, [&](auto dim) {
    constexpr int kHeadDim = decltype(dim)::value;
    const std::int64_t key_tiles = ceil_div(q.tokens, kColumnKeys);
    const bool one_each = key_tiles * k.heads * q.batch <= sm_count;
    const int teams = one_each ? kColumnMostTeams<kHeadDim> : kColumnFewestTeams;
    return launch_following(column_sum_kernel<T, kHeadDim>,
                            dim3(static_cast<unsigned>(k.heads), static_cast<unsigned>(q.batch),
                                 static_cast<unsigned>(key_tiles)),
                            teams * kColumnTeamThreads, column_shared_bytes<kHeadDim>(teams),
                            stream, q, k, lengths, lse, column_sums, prefill_scale_log2(q), early);
  });
}

template <class T>
cudaError_t launch_column_sums(const heads_view<const T>& q, const heads_view<const T>& k,
                               const std::int32_t* lengths, const float* lse, float* column_sums,
                               cudaStream_t stream) {
  static_assert(is_activation_v<T>, "attention takes __half or __nv_bfloat16");
  if (!valid_prompt_attention(q, k, k) || !valid_column_sums(q, lse) || column_sums == nullptr) {
    return cudaErrorInvalidValue;
  }
  int ordinal = 0, sm_count = 0;
  cudaError_t status = cudaGetDevice(&ordinal);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, ordinal);
  if (status != cudaSuccess) return status;
  return enqueue_column_sums(sm_count, q, k, lengths, lse, column_sums, false, stream);
}

template <class T, int HeadDim, bool Few>
cudaError_t enqueue_prefill(const heads_view<const T>& q, const heads_view<const T>& k,
                            const heads_view<const T>& v, const std::int32_t* lengths,
                            const heads_view<T>& out, float* lse, cudaStream_t stream) {
  constexpr attention_tile P = forward_tile<HeadDim, Few>();
  const std::int64_t blocks = ceil_div(q.tokens, P.rows()) * q.heads;
  if (blocks > std::numeric_limits<std::int32_t>::max()) return cudaErrorInvalidValue;
  return launch_following(prefill_kernel<T, HeadDim, Few>,
                          dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(q.batch)),
                          P.threads(), kPrefillSharedBytes<HeadDim, Few>, stream, q, k, v, lengths,
                          out, lse, prefill_scale_log2(q));
}

template <class T>
cudaError_t launch_prefill(const device_info& device, const heads_view<const T>& q,
                           const heads_view<const T>& k, const heads_view<const T>& v,
                           const std::int32_t* lengths, const heads_view<T>& out, float* lse,
                           float* column_sums, cudaStream_t stream) {
  static_assert(is_activation_v<T>, "attention takes __half or __nv_bfloat16");
  const bool valid = device.sm_count > 0 && valid_prompt_attention(q, k, v) && valid_heads(out) &&
                     same_tokens(q, out) && q.heads == out.heads &&
                     (column_sums == nullptr || valid_column_sums(q, lse));
  if (!valid) return cudaErrorInvalidValue;
  const cudaError_t status = dispatch_head_dim(q.head_dim, [&](auto dim) {
    constexpr int kHeadDim = decltype(dim)::value;
    constexpr attention_tile P = forward_tile<kHeadDim, false>();
    if constexpr (P.row_tiles > 1) {
      const std::int64_t blocks = ceil_div(q.tokens, P.rows()) * q.heads * q.batch;
      if (blocks < std::int64_t{kFewPrefillBlocks} * device.sm_count) {
        return enqueue_prefill<T, kHeadDim, true>(q, k, v, lengths, out, lse, stream);
      }
    }
    return enqueue_prefill<T, kHeadDim, false>(q, k, v, lengths, out, lse, stream);
  });
  if (status != cudaSuccess || column_sums == nullptr) return status;
  // The kernel ahead has waited for those that made q and k before it let this one start.
  return enqueue_column_sums(device.sm_count, q, k, lengths, lse, column_sums, true, stream);
}

template <class T>
bool valid_cache(const kv_cache_view<T>& cache) {
  return is_aligned(cache.k, 16) && is_aligned(cache.v, 16) && cache.k != nullptr &&
         cache.v != nullptr && cache.batch >= 1 && cache.batch <= 65535 && cache.kv_heads >= 1 &&
         cache.capacity >= 1 &&
         std::int64_t{cache.capacity} * cache.head_dim <= std::numeric_limits<std::int32_t>::max();
}

inline bool valid_state(const h2o_state_view& state) {
  return state.position != nullptr && state.free_slot != nullptr && state.step != nullptr &&
         state.length != nullptr;
}

inline bool valid_policy(const h2o_policy& policy, int capacity) {
  constexpr int kMax = std::numeric_limits<std::int32_t>::max() / 4;
  const auto in_range = [](int count, int least) { return count >= least && count <= kMax; };
  return in_range(policy.sinks, 0) && in_range(policy.heavy, 0) && in_range(policy.recent, 0) &&
         in_range(policy.evict_every, 1) && policy.capacity() == capacity &&
         policy.granularity >= h2o_granularity::per_head &&
         policy.granularity <= h2o_granularity::per_model;
}

/// One layer's state: plain, or scored under a policy that fits it.
inline bool valid_layer_state(const h2o_state_view& state, const h2o_policy& policy, int capacity) {
  return valid_state(state) && state.layers == 1 &&
         (state.score == nullptr ? state.capacity_of == nullptr : valid_policy(policy, capacity));
}

/// Whether cluster_decode_kernel takes the step.
template <class T, int HeadDim>
bool cluster_decodes(const device_info& device, const cluster_decode_shape<HeadDim>& shape) {
  return device.compute_capability >= 90 && cluster_takes(shape.capacity, shape.group_size) &&
         shape.bytes() <= device.max_shared_bytes &&
         compiled_for(90, cluster_decode_kernel<T, HeadDim, true>);
}

template <class T>
cudaError_t launch_decode(const device_info& device, const heads_view<const T>& q,
                          const heads_view<const T>& k_new, const heads_view<const T>& v_new,
                          const rotary_view& rotary, const kv_cache_view<T>& cache,
                          const h2o_state_view& state, const h2o_policy& policy,
                          const heads_view<T>& out, const workspace& ws, cudaStream_t stream,
                          early_read early) {
  static_assert(is_activation_v<T>, "attention takes __half or __nv_bfloat16");
  const bool valid =
      device.max_shared_bytes > 0 && valid_heads(q) && valid_heads(k_new) && valid_heads(v_new) &&
      valid_heads(out) && q.tokens == 1 && same_tokens(q, k_new) && same_tokens(q, v_new) &&
      same_tokens(q, out) && q.heads == out.heads && k_new.heads == v_new.heads &&
      q.heads % k_new.heads == 0 && valid_rotary(rotary, q.head_dim) && valid_cache(cache) &&
      cache.batch == q.batch && cache.kv_heads == k_new.heads && cache.head_dim == q.head_dim &&
      valid_layer_state(state, policy, cache.capacity);
  if (!valid) return cudaErrorInvalidValue;
  const float scale = 1.0f / std::sqrt(static_cast<float>(q.head_dim));
  return dispatch_head_dim(q.head_dim, [&](auto dim) {
    constexpr int kHeadDim = decltype(dim)::value;
    using shape = h2o_split_shape<kHeadDim, kDecodeThreads>;
    const int splits = decode_splits(cache.capacity, shape::kSlots);
    const int most_slots = static_cast<int>(ceil_div(cache.capacity, splits));
    // Enough heads fill the card with one block each, which then streams its splits.
    const bool whole_heads = std::int64_t{cache.kv_heads} * q.batch >= 2 * device.sm_count;
    const int blocks = whole_heads ? 1 : splits;
    const std::size_t attending = shape::shared_bytes(most_slots) * (blocks < splits ? 2 : 1);
    const int evict_every = state.score == nullptr ? 1 : policy.evict_every;
    const std::size_t merging = decode_merge_shared_bytes(q.heads / cache.kv_heads, evict_every);
    const std::size_t shared = attending > merging ? attending : merging;
    decode_workspace parts;
    const std::size_t needed = parts.place(ws.data, cache.batch, q.heads, cache.kv_heads, splits,
                                           cache.capacity, kHeadDim);
    if (!valid_workspace(ws, needed) || !is_aligned(ws.data, 16) ||
        shared > static_cast<std::size_t>(device.max_shared_bytes)) {
      return cudaErrorInvalidValue;
    }
    const int group_size = q.heads / cache.kv_heads;
    const cluster_decode_shape<kHeadDim> cluster{group_size, cluster_splits(cache.capacity),
                                                 cache.capacity, evict_every};
    if constexpr (kStreamsHeads<kHeadDim>) {
      using stream_shape = stream_decode_shape<kHeadDim>;
      const std::int64_t heads = std::int64_t{cache.kv_heads} * cache.batch;
      const bool one_leaves =
          policy.evict_every == 1 || policy.granularity != h2o_granularity::per_head;
      if (device.beside_others && cluster_decodes<T>(device, cluster) && state.score != nullptr &&
          one_leaves && stream_takes(cache.capacity, group_size, heads, device.sm_count) &&
          stream_shape::kBytes + 2048 <= device.max_shared_bytes) {
        return launch(stream_decode_kernel<T, kHeadDim>,
                      dim3(static_cast<unsigned>(std::min<std::int64_t>(heads, device.sm_count))),
                      stream_shape::kThreads, static_cast<std::size_t>(stream_shape::kBytes),
                      launch_options{1, true}, stream, q, k_new, v_new, rotary, cache, state,
                      policy, out, scale * kLog2E, early == early_read::cache, parts.arrived);
      }
    }
    if (cluster_decodes<T>(device, cluster)) {
      const dim3 grid(static_cast<unsigned>(cluster.splits), static_cast<unsigned>(cache.kv_heads),
                      static_cast<unsigned>(cache.batch));
      const bool resident =
          std::int64_t{cluster.splits} * cache.kv_heads * cache.batch <= device.sm_count;
      const auto start = [&](auto kernel) {
        return launch(kernel, grid, kClusterThreads<kHeadDim>,
                      static_cast<std::size_t>(cluster.bytes()),
                      launch_options{cluster.splits, true}, stream, q, k_new, v_new, rotary, cache,
                      state, policy, out, scale * kLog2E, early == early_read::cache);
      };
      return resident ? start(cluster_decode_kernel<T, kHeadDim, true>)
                      : start(cluster_decode_kernel<T, kHeadDim, false>);
    }
    return launch(decode_kernel<T, kHeadDim>,
                  dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(cache.kv_heads),
                       static_cast<unsigned>(q.batch)),
                  kDecodeThreads, shared, stream, q, k_new, v_new, rotary, cache, state, policy,
                  out, parts, splits, most_slots, scale);
  });
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
