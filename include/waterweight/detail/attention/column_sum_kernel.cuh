// The softmax mass each key of a prompt received: H2O's initial scores, without an N x N matrix.
#pragma once

#include <waterweight/detail/attention/common.cuh>
#include <waterweight/detail/attention/prefill_kernel.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kColumnKeyTile = 64;

template <int HeadDim>
inline constexpr int kColumnSharedBytes = (kColumnKeyTile +
                                           2 * kKeyTile<HeadDim>)*kPaddedHeadDim<HeadDim> *
                                          2;

/// One block owns 64 keys of one KV head: it walks the queries at or below the diagonal of every
/// query head of the group, recomputes K Q^T with keys as rows, and adds exp(score - lse) along the
/// rows. Nobody else touches these sums, and the order is fixed: no atomics.
template <class T, int HeadDim>
__global__ void __launch_bounds__(kPrefillThreads)
    column_sum_kernel(heads_view<const T> q, heads_view<const T> k, const std::int32_t* lengths,
                      const float* __restrict__ lse, float* column_sums, float scale_log2) {
  constexpr int kQueries = kKeyTile<HeadDim>, kKSteps = HeadDim / 16;
  constexpr int kPitch = kPaddedHeadDim<HeadDim>;
  constexpr bool kKeepK = HeadDim <= 128;
  extern __shared__ __align__(16) std::byte shared[];
  T* const k_tile = reinterpret_cast<T*>(shared);
  T* const q_tiles = k_tile + kColumnKeyTile * kPitch;

  const int kv_head = blockIdx.y, sequence = blockIdx.z, group_size = q.heads / k.heads;
  const int k0 = blockIdx.x * kColumnKeyTile;  // the first key tile meets the most queries
  const int length = sequence_length(lengths, sequence, q.tokens);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int key = k0 + 16 * warp + group;  // and key + 8

  const int first_tile = k0 / kQueries;
  const int tiles_per_head = k0 < length ? (length + kQueries - 1) / kQueries - first_tile : 0;
  const int tiles = tiles_per_head * group_size;
  const auto fill = [&](int i) {
    const int head = kv_head * group_size + i / tiles_per_head;
    copy_rows_async<HeadDim, kQueries, kPrefillThreads>(
        q_tiles + i % 2 * kQueries * kPitch,
        q.data + sequence * q.batch_stride + head * q.head_stride, q.token_stride,
        (first_tile + i % tiles_per_head) * kQueries, length);
    cp_async_commit();
  };

  std::uint32_t k_fragments[kKeepK ? kKSteps : 1][4];
  float sum[2] = {0.0f, 0.0f};
  if (tiles > 0) {
    copy_rows_async<HeadDim, kColumnKeyTile, kPrefillThreads>(
        k_tile, k.data + sequence * k.batch_stride + kv_head * k.head_stride, k.token_stride, k0,
        length);
    fill(0);
  }
  for (int i = 0; i < tiles; ++i) {
    cp_async_wait<0>();
    __syncthreads();
    if (i + 1 < tiles) fill(i + 1);
    const T* q_tile = q_tiles + i % 2 * kQueries * kPitch;
    const int q0 = (first_tile + i % tiles_per_head) * kQueries;
    const std::int64_t head =
        std::int64_t{sequence} * q.heads + kv_head * group_size + i / tiles_per_head;
    const float* head_lse = lse + head * q.tokens;

    if constexpr (kKeepK) {
      if (i == 0) {
#pragma unroll
        for (int step = 0; step < kKSteps; ++step) {
          load_a_fragment<HeadDim>(k_fragments[step], k_tile, 16 * warp, 16 * step);
        }
      }
    }
    float s[kQueries / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kKSteps; ++step) {
      std::uint32_t(&a)[4] = k_fragments[kKeepK ? step : 0];
      if constexpr (!kKeepK) load_a_fragment<HeadDim>(a, k_tile, 16 * warp, 16 * step);
#pragma unroll
      for (int j = 0; j < kQueries / 8; j += 2) {
        std::uint32_t b[4];
        load_b_fragments<HeadDim>(b, q_tile, 8 * j, 16 * step);
        mma_m16n8k16<T>(s[j], a, b[0], b[1]);
        mma_m16n8k16<T>(s[j + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const int query = q0 + 8 * j + 2 * quad + column;
        if (query >= length) continue;
        const float query_lse = head_lse[query] * kLog2E;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if (key + 8 * h <= query) {
            sum[h] += exp2f(s[j][2 * h + column] * scale_log2 - query_lse);
          }
        }
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
    if (quad == 0 && key + 8 * h < q.tokens) {
      const std::int64_t row = std::int64_t{sequence} * k.heads + kv_head;
      column_sums[row * q.tokens + key + 8 * h] = sum[h];  // 0 at or beyond the length
    }
  }
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
