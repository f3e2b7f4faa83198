// Host side of h2o.cuh: checks and launches.
#pragma once

#include <waterweight/detail/attention/launch.cuh>
#include <waterweight/detail/h2o/select_kernel.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

template <class T>
cudaError_t launch_select_and_compact(const heads_view<const T>& k, const heads_view<const T>& v,
                                      const float* column_sums, const std::int32_t* lengths,
                                      const kv_cache_view<T>& cache, const h2o_state_view& state,
                                      const h2o_budget& budget, cudaStream_t stream) {
  static_assert(is_activation_v<T>, "the cache holds __half or __nv_bfloat16");
  const bool scored = state.score != nullptr;
  const bool valid = valid_heads(k) && valid_heads(v) && same_tokens(k, v) && k.heads == v.heads &&
                     valid_cache(cache) && cache.batch == k.batch && cache.kv_heads == k.heads &&
                     cache.head_dim == k.head_dim && k.head_dim % 8 == 0 && valid_state(state) &&
                     (scored ? valid_budget(budget, cache.capacity) && column_sums != nullptr
                             : k.tokens < cache.capacity);
  if (!valid) return cudaErrorInvalidValue;
  const unsigned heads = static_cast<unsigned>(k.heads), batch = static_cast<unsigned>(k.batch);
  const cudaError_t status =
      launch(select_kernel<kSelectThreads>, dim3(heads, batch), kSelectThreads, 0, stream,
             scored ? column_sums : nullptr, lengths, k.tokens, cache.capacity, state, budget);
  if (status != cudaSuccess) return status;
  const std::int64_t vectors = std::int64_t{cache.capacity} * (cache.head_dim / 8);
  return launch(compact_kernel<T>,
                dim3(static_cast<unsigned>(ceil_div(vectors, kCompactThreads)), heads, batch),
                kCompactThreads, 0, stream, k, v, cache, state.position);
}

inline cudaError_t launch_advance(const h2o_state_view& state, int batch, int capacity,
                                  cudaStream_t stream) {
  if (state.step == nullptr || state.length == nullptr || batch < 1 || capacity < 1) {
    return cudaErrorInvalidValue;
  }
  constexpr int kThreads = 128;
  return launch(advance_kernel<kThreads>, dim3(static_cast<unsigned>(ceil_div(batch, kThreads))),
                kThreads, 0, stream, state.step, state.length, batch, capacity);
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
