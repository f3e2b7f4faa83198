// The softmax mass each key of a prompt received: H2O's initial scores, without an N x N matrix.
#pragma once

#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/attention/common.cuh>
#include <waterweight/detail/attention/prefill_kernel.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Rows are keys here: a sum over queries is then a sum in registers. A warp owns two groups of 16
/// keys, whose fragments stay in registers, so that of a tile only the queries are read from shared
/// memory, each fragment of them for twice the tensor work.
inline constexpr int kColumnWarps = 4;
inline constexpr int kColumnThreads = 32 * kColumnWarps;
inline constexpr int kColumnRowTiles = 2;
inline constexpr int kColumnWarpKeys = 16 * kColumnRowTiles;
inline constexpr int kColumnKeys = kColumnWarpKeys * kColumnWarps;

/// Queries per step. On an H200 (32 heads of 80, 2048 / 8192 tokens) these tiles took 49 / 550 us,
/// 128 queries 53 / 598, 48 keys per warp 48 / 533 (but 11.0 instead of 9.2 at 512 tokens), 64 keys
/// for two warps that halve the queries 51 / 690, 32 keys for two such warps 54 / 663.
template <int HeadDim>
inline constexpr int kColumnQueries = HeadDim <= 128 ? 64 : 32;

template <int HeadDim>
inline constexpr int kColumnSharedBytes =
    2 * (kPaddedHeadDim<HeadDim> * 2 + 4) * kColumnQueries<HeadDim>;

/// A warp's keys: the A fragments of its rows.
template <int HeadDim>
using column_keys = std::uint32_t[kColumnRowTiles][HeadDim / 16][4];

/// Loads kColumnWarpKeys rows from row0 of one head; rows at or beyond `rows` are zeros. Straight
/// from global memory: each row is read once.
template <class T, int HeadDim>
__device__ __forceinline__ void load_keys(column_keys<HeadDim>& a, const T* head,
                                          std::int64_t row_stride, int row0, int rows) {
  const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
#pragma unroll
  for (int r = 0; r < kColumnRowTiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row0 + 16 * r + 8 * h + group;
      const T* pairs = head + row * row_stride + 2 * quad;
#pragma unroll
      for (int step = 0; step < HeadDim / 16; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          a[r][step][2 * half + h] =
              row < rows ? *reinterpret_cast<const std::uint32_t*>(pairs + 16 * step + 8 * half)
                         : 0u;
        }
      }
    }
  }
}

/// Adds exp(score - lse) of a tile of queries to the sums of a warp's keys; lane = 4 * g + t keeps
/// its share of keys g and g + 8 of each group. Sixteen queries at a time: the exponentials of some
/// then run beside the products of the next. With Masked, queries above a key give it nothing:
/// `ahead` is this lane's first query (2t) less its first key (g).
template <bool Masked, class T, int HeadDim>
__device__ __forceinline__ void add_weights(float (&sum)[kColumnRowTiles][2],
                                            column_keys<HeadDim>& keys, const T* queries,
                                            const float* lse, float scale_log2, int ahead) {
  const int quad = threadIdx.x % 4;
#pragma unroll
  for (int first = 0; first < kColumnQueries<HeadDim>; first += 16) {
    float s[kColumnRowTiles][2][4] = {};
    multiply_tile<T, HeadDim, kColumnRowTiles, 16, true>(s, keys, nullptr, 0,
                                                         queries + first * kPaddedHeadDim<HeadDim>);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float2 pair = *reinterpret_cast<const float2*>(lse + first + 8 * j + 2 * quad);
#pragma unroll
      for (int r = 0; r < kColumnRowTiles; ++r) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float offset = (e % 2 == 0 ? pair.x : pair.y) * kLog2E;
          const float p = fast_exp2(fmaf(s[r][j][e], scale_log2, -offset));
          const bool seen = 16 * r + 8 * (e / 2) <= ahead + first + 8 * j + e % 2;
          if (!Masked || seen) sum[r][e / 2] += p;
        }
      }
    }
  }
}

/// One block owns kColumnKeys keys of one KV head: it walks the queries at or below the diagonal of
/// every query head of the group, recomputes K Q^T, and adds exp(score - lse) along the rows.
/// Nobody else touches these sums, and the order is fixed: no atomics. Grid: (KV heads, batch, key
/// tiles). The first keys meet the most queries: those of all heads start first, and shorter walks
/// fill in as they end.
template <class T, int HeadDim>
__global__ void __launch_bounds__(kColumnThreads, HeadDim <= 80 ? 3 : 2)
    column_sum_kernel(heads_view<const T> q, heads_view<const T> k, const std::int32_t* lengths,
                      const float* __restrict__ lse, float* column_sums, float scale_log2) {
  constexpr int kQueries = kColumnQueries<HeadDim>, kPitch = kPaddedHeadDim<HeadDim>;
  extern __shared__ __align__(16) std::byte shared[];
  follow_earlier_kernels();
  T* const q_tiles = reinterpret_cast<T*>(shared);
  float* const lse_tiles = reinterpret_cast<float*>(q_tiles + 2 * kQueries * kPitch);

  const int kv_head = blockIdx.x, sequence = blockIdx.y, group_size = q.heads / k.heads;
  const int k0 = blockIdx.z * kColumnKeys;
  const int length = sequence_length(lengths, sequence, q.tokens);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int warp_key = k0 + warp * kColumnWarpKeys;

  const int first_tile = k0 / kQueries, last_tile = (length + kQueries - 1) / kQueries;
  const int tiles = k0 < length ? (last_tile - first_tile) * group_size : 0;
  int next_head = kv_head * group_size, next_tile = first_tile;
  const auto fill = [&](int stage) {
    const int q0 = next_tile * kQueries;
    copy_rows_async<HeadDim, kQueries, kColumnThreads>(
        q_tiles + stage * kQueries * kPitch,
        q.data + sequence * q.batch_stride + next_head * q.head_stride, q.token_stride, q0, length);
    if (threadIdx.x < kQueries) {
      const int query = q0 + static_cast<int>(threadIdx.x);
      float* target = lse_tiles + stage * kQueries + threadIdx.x;
      if (query < length) {
        const std::int64_t row = std::int64_t{sequence} * q.heads + next_head;
        cp_async_4(target, lse + row * q.tokens + query, true);
      } else {
        *target = INFINITY;  // no query: its weights are 0
      }
    }
    cp_async_commit();
    if (++next_tile == last_tile) {
      next_tile = first_tile;
      ++next_head;
    }
  };

  column_keys<HeadDim> keys;
  float sum[kColumnRowTiles][2] = {};
  if (tiles > 0) {
    fill(0);
    load_keys<T, HeadDim>(keys, k.data + sequence * k.batch_stride + kv_head * k.head_stride,
                          k.token_stride, warp_key, length);
  }
  int tile = first_tile;
  for (int i = 0; i < tiles; ++i) {
    cp_async_wait<0>();
    __syncthreads();  // tile arrived; everybody has left the other stage
    if (i + 1 < tiles) fill((i + 1) % 2);
    const T* q_tile = q_tiles + i % 2 * kQueries * kPitch;
    const float* tile_lse = lse_tiles + i % 2 * kQueries;
    const int q0 = tile * kQueries, ahead = q0 + 2 * quad - (warp_key + group);
    if (q0 >= warp_key + kColumnWarpKeys - 1) {
      add_weights<false, T, HeadDim>(sum, keys, q_tile, tile_lse, scale_log2, ahead);
    } else if (q0 + kQueries > warp_key) {  // the diagonal crosses
      add_weights<true, T, HeadDim>(sum, keys, q_tile, tile_lse, scale_log2, ahead);
    }
    if (++tile == last_tile) tile = first_tile;
  }
#pragma unroll
  for (int r = 0; r < kColumnRowTiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = sum[r][h];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      const int key = warp_key + 16 * r + group + 8 * h;
      if (quad == 0 && key < q.tokens) {
        const std::int64_t row = std::int64_t{sequence} * k.heads + kv_head;
        column_sums[row * q.tokens + key] = total;  // 0 at or beyond the length
      }
    }
  }
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
