// The device-wide kernels over rotary.cuh and h2o_decode.cuh.
#pragma once

#include <waterweight/detail/attention/common.cuh>
#include <waterweight/device/h2o_decode.cuh>
#include <waterweight/device/rotary.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kRotaryThreads = 256;

/// One thread per rotated pair: x = pair, y = token, z = sequence.
template <class T>
__global__ void __launch_bounds__(kRotaryThreads)
    rotary_kernel(heads_view<T> x, rotary_view rotary, const std::int32_t* first_position) {
  const int half = rotary.dims / 2, pair = blockIdx.x * kRotaryThreads + threadIdx.x;
  if (pair >= half * x.heads) return;
  const int head = pair / half, i = pair % half;
  const int token = blockIdx.y, sequence = blockIdx.z;
  const int position = (first_position == nullptr ? 0 : first_position[sequence]) + token;
  T* element =
      x.data + sequence * x.batch_stride + token * x.token_stride + head * x.head_stride + i;
  const float2 turned = rotate_pair(make_float2(to_float(element[0]), to_float(element[half])),
                                    rotary.inv_freq[i], position);
  element[0] = from_float<T>(turned.x);
  element[half] = from_float<T>(turned.y);
}

inline constexpr int kDecodeThreads = 512;

/// One block per (KV head, sequence).
template <class T, int HeadDim>
__global__ void __launch_bounds__(kDecodeThreads)
    decode_kernel(heads_view<const T> q, heads_view<const T> k_new, heads_view<const T> v_new,
                  rotary_view rotary, kv_cache_view<T> cache, h2o_state_view state,
                  h2o_budget budget, heads_view<T> out, float scale) {
  extern __shared__ __align__(16) std::byte shared[];
  const int kv_head = blockIdx.x, sequence = blockIdx.y;
  const int group_size = q.heads / k_new.heads;
  const std::int64_t row = std::int64_t{sequence} * cache.kv_heads + kv_head;
  const std::int64_t slots = row * cache.capacity;
  const h2o_head<T> head{cache.k + slots * HeadDim,
                         cache.v + slots * HeadDim,
                         state.score == nullptr ? nullptr : state.score + slots,
                         state.position + slots,
                         state.free_slot + row,
                         cache.capacity,
                         state.step[sequence],
                         state.length[sequence],
                         budget.sinks,
                         budget.recent};
  block_h2o_decode<T, HeadDim, kDecodeThreads> block(head, rotary, shared);
  block.run(q.data + sequence * q.batch_stride + kv_head * group_size * q.head_stride,
            q.head_stride, k_new.data + sequence * k_new.batch_stride + kv_head * k_new.head_stride,
            v_new.data + sequence * v_new.batch_stride + kv_head * v_new.head_stride,
            out.data + sequence * out.batch_stride + kv_head * group_size * out.head_stride,
            out.head_stride, group_size, scale);
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
