// The softmax mass each key of a prompt received: H2O's initial scores, without an N x N matrix.
#pragma once

#include <waterweight/detail/attention/common.cuh>
#include <waterweight/detail/attention/prefill_kernel.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Rows are keys here. No output accumulates, so the fragments of the keys stay in registers
/// longer.
template <int HeadDim>
inline constexpr attention_tile kColumnTile = HeadDim <= 80    ? attention_tile{2, 64, false}
                                              : HeadDim <= 128 ? attention_tile{2, 32, false}
                                                               : attention_tile{1, 32, false};

template <int HeadDim>
inline constexpr int kColumnSharedBytes =
    (kColumnTile<HeadDim>.rows() + 2 * kColumnTile<HeadDim>.columns) * kPaddedHeadDim<HeadDim> * 2 +
    2 * kColumnTile<HeadDim>.columns * 4;

/// One block owns kColumnTile<HeadDim>.rows() keys of one KV head: it walks the queries at or below
/// the diagonal of every query head of the group, recomputes K Q^T with keys as rows, and adds
/// exp(score - lse) along the rows. Nobody else touches these sums, and the order is fixed: no
/// atomics.
template <class T, int HeadDim>
__global__ void __launch_bounds__(kPrefillThreads, HeadDim <= 96    ? 4
                                                   : HeadDim <= 128 ? 3
                                                                    : 1)
    column_sum_kernel(heads_view<const T> q, heads_view<const T> k, const std::int32_t* lengths,
                      const float* __restrict__ lse, float* column_sums, float scale_log2) {
  constexpr attention_tile P = kColumnTile<HeadDim>;
  constexpr int kQueries = P.columns, kKeys = P.rows(), kPitch = kPaddedHeadDim<HeadDim>;
  extern __shared__ __align__(16) std::byte shared[];
  T* const k_tile = reinterpret_cast<T*>(shared);
  T* const q_tiles = k_tile + kKeys * kPitch;
  float* const lse_tiles = reinterpret_cast<float*>(q_tiles + 2 * kQueries * kPitch);

  const int kv_head = blockIdx.y, sequence = blockIdx.z, group_size = q.heads / k.heads;
  const int k0 = blockIdx.x * kKeys;  // the first key tile meets the most queries
  const int length = sequence_length(lengths, sequence, q.tokens);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int warp_row = warp * 16 * P.row_tiles;

  const int first_tile = k0 / kQueries;
  const int tiles_per_head = k0 < length ? (length + kQueries - 1) / kQueries - first_tile : 0;
  const int tiles = tiles_per_head * group_size;
  const auto fill = [&](int i) {
    const int head = kv_head * group_size + i / tiles_per_head;
    const int q0 = (first_tile + i % tiles_per_head) * kQueries;
    copy_rows_async<HeadDim, kQueries, kPrefillThreads>(
        q_tiles + i % 2 * kQueries * kPitch,
        q.data + sequence * q.batch_stride + head * q.head_stride, q.token_stride, q0, length);
    if (threadIdx.x < kQueries) {
      const float* head_lse = lse + (std::int64_t{sequence} * q.heads + head) * q.tokens;
      const int query = q0 + static_cast<int>(threadIdx.x);
      const bool inside = query < length;
      cp_async_4(lse_tiles + i % 2 * kQueries + threadIdx.x, head_lse + (inside ? query : 0),
                 inside);
    }
    cp_async_commit();
  };

  std::uint32_t kept[P.keep_rows ? P.row_tiles : 1][P.keep_rows ? HeadDim / 16 : 1][4];
  float sum[P.row_tiles][2] = {};
  if (tiles > 0) {
    copy_rows_async<HeadDim, kKeys, kPrefillThreads>(
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
    const float* tile_lse = lse_tiles + i % 2 * kQueries;
    if (i == 0) keep_rows<T, HeadDim, P.row_tiles, P.keep_rows>(kept, k_tile, warp_row);

    float s[P.row_tiles][kQueries / 8][4] = {};
    multiply_tile<T, HeadDim, P.row_tiles, kQueries, P.keep_rows>(s, kept, k_tile, warp_row,
                                                                  q_tile);
    // Queries above a key, or beyond the sequence, give it nothing.
    const bool whole = q0 >= k0 + warp_row + 16 * P.row_tiles && q0 + kQueries <= length;
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j) {
      const float2 pair = *reinterpret_cast<const float2*>(tile_lse + 8 * j + 2 * quad);
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const int query = q0 + 8 * j + 2 * quad + column;
        const float offset = (column == 0 ? pair.x : pair.y) * kLog2E;
#pragma unroll
        for (int r = 0; r < P.row_tiles; ++r) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float p = fast_exp2(fmaf(s[r][j][2 * h + column], scale_log2, -offset));
            const int key = k0 + warp_row + 16 * r + group + 8 * h;
            if (whole || (key <= query && query < length)) sum[r][h] += p;
          }
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < P.row_tiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = sum[r][h];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      const int key = k0 + warp_row + 16 * r + group + 8 * h;
      if (quad == 0 && key < q.tokens) {
        const std::int64_t row = std::int64_t{sequence} * k.heads + kv_head;
        column_sums[row * q.tokens + key] = total;  // 0 at or beyond the length
      }
    }
  }
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
