// Host side of h2o.cuh: checks and launches.
#pragma once

#include <cmath>

#include <waterweight/detail/attention/launch.cuh>
#include <waterweight/detail/h2o/keep_sets.cuh>
#include <waterweight/detail/h2o/select_kernel.cuh>
#include <waterweight/detail/h2o/step_kernel.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// `count` layers of `elements` each, `stride` elements apart: a grid dimension, and no overlap.
inline bool valid_layers(int count, std::int64_t stride, std::int64_t elements) {
  return count >= 1 && count <= 65535 && (count == 1 || stride >= elements);
}

/// Heads of a layer's state: grid dimensions.
inline bool valid_rows(int batch, int kv_heads) {
  return batch >= 1 && batch <= 65535 && kv_heads >= 1 && kv_heads <= 65535;
}

/// The workspace of one call of h2o_select or h2o_evict: sums of scores by keep set.
struct keep_set_sums {
  float* data = nullptr;  ///< null where each head's own scores decide
  std::size_t bytes = 0;
  bool valid = false;

  keep_set_sums(const h2o_policy& policy, int layers, int batch, int columns, const workspace& ws)
      : bytes(sizeof(float) * static_cast<std::size_t>(keep_sets(policy, layers)) * batch *
              columns) {
    valid = valid_workspace(ws, bytes) && is_aligned(ws.data, alignof(float));
    if (bytes > 0) data = static_cast<float*>(ws.data);
  }

  /// scores: [layers, batch, kv_heads, columns], layers `layer_stride` elements apart.
  cudaError_t fill(const float* scores, const h2o_policy& policy, int layers,
                   std::int64_t layer_stride, int batch, int kv_heads, int columns,
                   cudaStream_t stream) const {
    if (data == nullptr) return cudaSuccess;
    const int sets = keep_sets(policy, layers);
    return launch(sum_scores_kernel<kSumColumns, kSumLayers>,
                  dim3(static_cast<unsigned>(ceil_div(columns, kSumColumns)),
                       static_cast<unsigned>(batch), static_cast<unsigned>(sets)),
                  kSumColumns * kSumLayers, 0, stream, scores, layer_stride, kv_heads, columns,
                  layers / sets, data);
  }

  /// The workspace as it was found.
  cudaError_t clear(cudaStream_t stream) const {
    return data == nullptr ? cudaSuccess : cudaMemsetAsync(data, 0, bytes, stream);
  }
};

/// Without scores: every prompt is kept whole.
inline cudaError_t enqueue_select(const h2o_score_view& scores, const float* sums,
                                  const std::int32_t* lengths, const h2o_state_view& state,
                                  int capacity, const h2o_policy& policy, cudaStream_t stream) {
  return launch_following(
      select_kernel<kSelectThreads>,
      dim3(static_cast<unsigned>(scores.kv_heads), static_cast<unsigned>(scores.batch),
           static_cast<unsigned>(scores.layers)),
      kSelectThreads, 0, stream, scores, sums, lengths, capacity, state, policy);
}

inline cudaError_t launch_select(const h2o_score_view& scores, const std::int32_t* lengths,
                                 const h2o_state_view& state, int capacity,
                                 const h2o_policy& policy, const workspace& ws,
                                 cudaStream_t stream) {
  const bool valid =
      scores.data != nullptr && scores.tokens >= 1 && valid_rows(scores.batch, scores.kv_heads) &&
      valid_layers(scores.layers, scores.layer_stride,
                   std::int64_t{scores.batch} * scores.kv_heads * scores.tokens) &&
      valid_state(state) && state.score != nullptr && state.layers == scores.layers &&
      valid_layers(state.layers, state.layer_stride,
                   std::int64_t{scores.batch} * scores.kv_heads) &&
      valid_policy(policy, capacity);
  if (!valid) return cudaErrorInvalidValue;
  const keep_set_sums sums(policy, scores.layers, scores.batch, scores.tokens, ws);
  if (!sums.valid) return cudaErrorInvalidValue;
  cudaError_t status = sums.fill(scores.data, policy, scores.layers, scores.layer_stride,
                                 scores.batch, scores.kv_heads, scores.tokens, stream);
  if (status != cudaSuccess) return status;
  status = enqueue_select(scores, sums.data, lengths, state, capacity, policy, stream);
  return status == cudaSuccess ? sums.clear(stream) : status;
}

/// k and v: of `layers` layers, one behind the other.
template <class T>
bool valid_prompt(const heads_view<const T>& k, const heads_view<const T>& v,
                  const kv_cache_view<T>& cache, int layers) {
  static_assert(is_activation_v<T>, "the cache holds __half or __nv_bfloat16");
  return valid_heads(k) && valid_heads(v) && same_tokens(k, v) && k.heads == v.heads &&
         valid_cache(cache) && std::int64_t{cache.batch} * layers == k.batch &&
         cache.kv_heads == k.heads && cache.head_dim == k.head_dim && k.head_dim % 8 == 0;
}

template <class T>
cudaError_t enqueue_compact(const heads_view<const T>& k, const heads_view<const T>& v,
                            const std::int32_t* position, const kv_cache_view<T>& cache,
                            std::int64_t layer_stride, cudaStream_t stream) {
  const std::int64_t vectors = std::int64_t{cache.capacity} * (cache.head_dim / 8);
  return launch_following(compact_kernel<T>,
                          dim3(static_cast<unsigned>(ceil_div(vectors, kCompactThreads)),
                               static_cast<unsigned>(k.heads), static_cast<unsigned>(k.batch)),
                          kCompactThreads, 0, stream, k, v, cache, position, layer_stride);
}

template <class T>
cudaError_t launch_compact(const heads_view<const T>& k, const heads_view<const T>& v,
                           const std::int32_t* position, const kv_cache_view<T>& cache,
                           cudaStream_t stream) {
  if (!valid_prompt(k, v, cache, 1) || position == nullptr) return cudaErrorInvalidValue;
  return enqueue_compact<T>(k, v, position, cache, 0, stream);
}

template <class T>
cudaError_t launch_select_and_compact(const heads_view<const T>& k, const heads_view<const T>& v,
                                      const float* column_sums, const std::int32_t* lengths,
                                      const kv_cache_view<T>& cache, const h2o_state_view& state,
                                      const h2o_policy& policy, const workspace& ws,
                                      cudaStream_t stream) {
  const bool scored = state.score != nullptr;
  const std::int64_t heads = std::int64_t{cache.batch} * cache.kv_heads;
  const bool valid = valid_state(state) && valid_layers(state.layers, state.layer_stride, heads) &&
                     valid_prompt(k, v, cache, state.layers) &&
                     (scored ? valid_policy(policy, cache.capacity)
                             : state.capacity_of == nullptr && k.tokens < cache.capacity &&
                                   valid_workspace(ws, 0));
  if (!valid) return cudaErrorInvalidValue;
  const h2o_score_view scores{column_sums, cache.batch,  k.heads,
                              k.tokens,    state.layers, heads * k.tokens};
  const cudaError_t status =
      scored ? launch_select(scores, lengths, state, cache.capacity, policy, ws, stream)
             : enqueue_select(scores, nullptr, lengths, state, cache.capacity, policy, stream);
  if (status != cudaSuccess) return status;
  return enqueue_compact<T>(k, v, state.position, cache, state.layer_stride, stream);
}

/// What the accumulating functions need of a layer's state.
inline bool valid_scored_layer(const h2o_state_view& state) {
  return valid_state(state) && state.layers == 1 && state.score != nullptr;
}

template <class P>
cudaError_t launch_accumulate(const matrix_view<const P>& probabilities, int batch, int kv_heads,
                              const h2o_state_view& state, cudaStream_t stream) {
  static_assert(is_activation_v<P> || std::is_same_v<P, float>,
                "probabilities are float, __half or __nv_bfloat16");
  if (!valid_matrix(probabilities) || !valid_rows(batch, kv_heads) ||
      probabilities.rows % (std::int64_t{batch} * kv_heads) != 0 || !valid_scored_layer(state)) {
    return cudaErrorInvalidValue;
  }
  const std::int64_t group_size = probabilities.rows / (std::int64_t{batch} * kv_heads);
  return launch(accumulate_kernel<P>,
                dim3(static_cast<unsigned>(ceil_div(probabilities.cols, kAccumulateThreads)),
                     static_cast<unsigned>(kv_heads), static_cast<unsigned>(batch)),
                kAccumulateThreads, 0, stream, probabilities, static_cast<int>(group_size), state);
}

template <class T>
cudaError_t launch_accumulate_lse(const heads_view<const T>& q, const float* lse,
                                  const kv_cache_view<T>& cache, const h2o_state_view& state,
                                  cudaStream_t stream) {
  static_assert(is_activation_v<T>, "the cache holds __half or __nv_bfloat16");
  kv_cache_view<T> keys = cache;
  keys.v = keys.k;  // not read
  if (!valid_heads(q) || q.tokens != 1 || lse == nullptr || !valid_cache(keys) ||
      !valid_rows(cache.batch, cache.kv_heads) || cache.batch != q.batch ||
      q.heads % cache.kv_heads != 0 || cache.head_dim != q.head_dim || !valid_scored_layer(state)) {
    return cudaErrorInvalidValue;
  }
  const float scale_log2 = kLog2E / std::sqrt(static_cast<float>(q.head_dim));
  return dispatch_head_dim(q.head_dim, [&](auto dim) {
    return launch(accumulate_lse_kernel<T, decltype(dim)::value>,
                  dim3(static_cast<unsigned>(ceil_div(cache.capacity, kKeysPerBlock)),
                       static_cast<unsigned>(cache.kv_heads), static_cast<unsigned>(cache.batch)),
                  kAccumulateThreads, 0, stream, q, lse, cache, state, scale_log2);
  });
}

template <class T>
cudaError_t launch_evict(const kv_cache_view<T>& cache, const h2o_state_view& state,
                         const h2o_policy& policy, const workspace& ws, cudaStream_t stream) {
  static_assert(sizeof(T) == 2, "the cache holds 16-bit elements");
  const bool valid =
      valid_cache(cache) && valid_rows(cache.batch, cache.kv_heads) && cache.head_dim >= 8 &&
      cache.head_dim % 8 == 0 && valid_state(state) && state.score != nullptr &&
      valid_layers(state.layers, state.layer_stride, std::int64_t{cache.batch} * cache.kv_heads) &&
      valid_policy(policy, cache.capacity);
  if (!valid) return cudaErrorInvalidValue;
  const keep_set_sums sums(policy, state.layers, cache.batch, cache.capacity, ws);
  if (!sums.valid) return cudaErrorInvalidValue;
  cudaError_t status =
      sums.fill(state.score, policy, state.layers, state.layer_stride * cache.capacity, cache.batch,
                cache.kv_heads, cache.capacity, stream);
  if (status != cudaSuccess) return status;
  status = launch(evict_kernel<kEvictThreads>,
                  dim3(static_cast<unsigned>(cache.kv_heads), static_cast<unsigned>(cache.batch),
                       static_cast<unsigned>(state.layers)),
                  kEvictThreads, h2o_evict_shared_bytes<kEvictThreads>(policy.evict_every), stream,
                  reinterpret_cast<uint4*>(cache.k), reinterpret_cast<uint4*>(cache.v),
                  cache.head_dim / 8, cache.capacity, state, policy, sums.data);
  return status == cudaSuccess ? sums.clear(stream) : status;
}

inline cudaError_t launch_advance(const h2o_state_view& state, int batch, int capacity,
                                  const h2o_policy& policy, cudaStream_t stream) {
  if (state.step == nullptr || state.length == nullptr || batch < 1 || capacity < 1 ||
      policy.evict_every < 1 || policy.evict_every > capacity) {
    return cudaErrorInvalidValue;
  }
  constexpr int kThreads = 128;
  return launch_following(advance_kernel<kThreads>,
                          dim3(static_cast<unsigned>(ceil_div(batch, kThreads))), kThreads, 0,
                          stream, state, policy, batch, capacity);
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
