// Host side of h2o.cuh: checks and launches.
#pragma once

#include <waterweight/detail/attention/launch.cuh>
#include <waterweight/detail/h2o/select_kernel.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Sets of kept keys that several heads share.
constexpr int keep_sets(const h2o_policy& policy, int layers) {
  return policy.granularity == h2o_granularity::per_head    ? 0
         : policy.granularity == h2o_granularity::per_layer ? layers
                                                            : 1;
}

cudaError_t launch_select(const h2o_score_view& scores, const std::int32_t* lengths,
                          const h2o_state_view& state, int capacity, const h2o_policy& policy,
                          const workspace& ws, cudaStream_t stream);

template <class T>
cudaError_t launch_compact(const heads_view<const T>& k, const heads_view<const T>& v,
                           const std::int32_t* position, const kv_cache_view<T>& cache,
                           cudaStream_t stream);

template <class P>
cudaError_t launch_accumulate(const matrix_view<const P>& probabilities, int batch, int kv_heads,
                              const h2o_state_view& state, cudaStream_t stream);

template <class T>
cudaError_t launch_accumulate_lse(const heads_view<const T>& q, const float* lse,
                                  const kv_cache_view<T>& cache, const h2o_state_view& state,
                                  cudaStream_t stream);

template <class T>
cudaError_t launch_evict(const kv_cache_view<T>& cache, const h2o_state_view& state,
                         const h2o_policy& policy, const workspace& ws, cudaStream_t stream);

template <class T>
cudaError_t launch_select_and_compact(const heads_view<const T>& k, const heads_view<const T>& v,
                                      const float* column_sums, const std::int32_t* lengths,
                                      const kv_cache_view<T>& cache, const h2o_state_view& state,
                                      const h2o_policy& policy, const workspace& ws,
                                      cudaStream_t stream) {
  static_assert(is_activation_v<T>, "the cache holds __half or __nv_bfloat16");
  const bool scored = state.score != nullptr;
  const bool valid = valid_heads(k) && valid_heads(v) && same_tokens(k, v) && k.heads == v.heads &&
                     valid_cache(cache) && cache.batch == k.batch && cache.kv_heads == k.heads &&
                     cache.head_dim == k.head_dim && k.head_dim % 8 == 0 && valid_state(state) &&
                     (scored ? valid_policy(policy, cache.capacity) && column_sums != nullptr
                             : k.tokens < cache.capacity);
  if (!valid) return cudaErrorInvalidValue;
  const unsigned heads = static_cast<unsigned>(k.heads), batch = static_cast<unsigned>(k.batch);
  const cudaError_t status =
      launch(select_kernel<kSelectThreads>, dim3(heads, batch), kSelectThreads, 0, stream,
             scored ? column_sums : nullptr, lengths, k.tokens, cache.capacity, state, policy);
  if (status != cudaSuccess) return status;
  const std::int64_t vectors = std::int64_t{cache.capacity} * (cache.head_dim / 8);
  return launch(compact_kernel<T>,
                dim3(static_cast<unsigned>(ceil_div(vectors, kCompactThreads)), heads, batch),
                kCompactThreads, 0, stream, k, v, cache, state.position);
}

inline cudaError_t launch_advance(const h2o_state_view& state, int batch, int capacity,
                                  const h2o_policy& policy, cudaStream_t stream) {
  if (state.step == nullptr || state.length == nullptr || batch < 1 || capacity < 1) {
    return cudaErrorInvalidValue;
  }
  constexpr int kThreads = 128;
  return launch(advance_kernel<kThreads>, dim3(static_cast<unsigned>(ceil_div(batch, kThreads))),
                kThreads, 0, stream, state.step, state.length, batch, capacity);
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
