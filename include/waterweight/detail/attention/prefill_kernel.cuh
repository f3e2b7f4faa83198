// Causal attention of a prompt: online softmax over key tiles (FlashAttention-2, Dao 2023).
#pragma once

#include <cstring>

#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/attention/common.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Tile shape by head_dim. A warp owns `row_tiles` groups of 16 rows: with two, each fragment of K
/// or V that comes from shared memory feeds twice the tensor work, which is what shared memory's
/// bandwidth asks for. At head_dim 256 the output of one group alone fills the registers.
struct attention_tile {
  int row_tiles;
  int columns;     ///< keys per step
  bool keep_rows;  ///< the queries' fragments stay in registers
  int warps = 4;
  bool ahead = false;  ///< a tile's scores are computed before the one before is taken

  WATERWEIGHT_HOST_DEVICE constexpr int rows() const { return 16 * row_tiles * warps; }
  WATERWEIGHT_HOST_DEVICE constexpr int threads() const { return 32 * warps; }
};

/// Rows are queries. 64 columns where the scores fit beside the output. The tiles of head_dim 256
/// together take exactly the 99 KiB a block may have on sm_86 and sm_89. Few: for prompts whose
/// blocks do not fill the card: twice the warps for the same queries, which leaves registers to
/// work ahead. A row comes out the same, bit for bit. On an H200 (32 heads of 80, 500 / 768 / 1024
/// tokens): 13.6 / 18.8 / 28.8 us instead of 13.8 / 27.3 / 37.3.
template <int HeadDim, bool Few>
WATERWEIGHT_HOST_DEVICE constexpr attention_tile forward_tile() {
  if (HeadDim > 128) return {1, 32, false};
  if (HeadDim > 80) {
    return Few ? attention_tile{1, 32, false, 8, true} : attention_tile{2, 32, false};
  }
  return Few ? attention_tile{1, 64, true, 8, true} : attention_tile{2, 64, true};
}

/// Blocks per SM below which they are few.
inline constexpr int kFewPrefillBlocks = 2;

template <int HeadDim, bool Few>
inline constexpr int kPrefillSharedBytes = (forward_tile<HeadDim, Few>().rows() +
                                            4 * forward_tile<HeadDim, Few>().columns) *
                                           kPaddedHeadDim<HeadDim> * 2;

/// scores[r][j] += rows 16 * r .. of the warp's queries times keys 8 * j .. of `tile`. `first_row` is
/// the warp's first row in `row_tile`, whose fragments are in `kept` if the policy keeps them.
template <class T, int HeadDim, int RowTiles, int Columns, bool Kept>
__device__ __forceinline__ void multiply_tile(
    float (&scores)[RowTiles][Columns / 8][4],
    std::uint32_t (&kept)[Kept ? RowTiles : 1][Kept ? HeadDim / 16 : 1][4], const T* row_tile,
    int first_row, const T* tile) {
#pragma unroll
  for (int step = 0; step < HeadDim / 16; ++step) {
    std::uint32_t loaded[RowTiles][4];
    if constexpr (!Kept) {
#pragma unroll
      for (int r = 0; r < RowTiles; ++r) {
        load_a_fragment<HeadDim>(loaded[r], row_tile, first_row + 16 * r, 16 * step);
      }
    }
#pragma unroll
    for (int j = 0; j < Columns / 8; j += 2) {
      std::uint32_t b[4];
      load_b_fragments<HeadDim>(b, tile, 8 * j, 16 * step);
#pragma unroll
      for (int r = 0; r < RowTiles; ++r) {
        const std::uint32_t(&a)[4] = Kept ? kept[Kept ? r : 0][Kept ? step : 0] : loaded[r];
        mma_m16n8k16<T>(scores[r][j], a, b[0], b[1]);
        mma_m16n8k16<T>(scores[r][j + 1], a, b[2], b[3]);
      }
    }
  }
}

/// Fills `kept` from the warp's rows.
template <class T, int HeadDim, int RowTiles, bool Kept>
__device__ __forceinline__ void keep_rows(
    std::uint32_t (&kept)[Kept ? RowTiles : 1][Kept ? HeadDim / 16 : 1][4], const T* row_tile,
    int first_row) {
  if constexpr (Kept) {
#pragma unroll
    for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
      for (int step = 0; step < HeadDim / 16; ++step) {
        load_a_fragment<HeadDim>(kept[r][step], row_tile, first_row + 16 * r, 16 * step);
      }
    }
  }
}

/// Softmax state and output of one group of 16 queries: lane = 4 * g + t holds rows g and g + 8.
template <class T, int HeadDim, int Columns>
struct online_softmax {
  float output[HeadDim / 8][4] = {};
  float maximum[2] = {-INFINITY, -INFINITY};  ///< of raw scores
  float sum[2] = {0.0f, 0.0f};                ///< this lane's share

  /// Takes one tile of raw scores, leaves their weights in place of them.
  __device__ __forceinline__ void update(float (&s)[Columns / 8][4], float scale_log2) {
    float tile_max[2] = {maximum[0], maximum[1]};
#pragma unroll
    for (int j = 0; j < Columns / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) tile_max[e / 2] = fmaxf(tile_max[e / 2], s[j][e]);
    }
    float offset[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      tile_max[h] = fmaxf(tile_max[h], __shfl_xor_sync(0xffffffffu, tile_max[h], 1));
      tile_max[h] = fmaxf(tile_max[h], __shfl_xor_sync(0xffffffffu, tile_max[h], 2));
      // Tile 0 holds key 0, which every query sees: the maximum is finite from then on.
      const float correction = fast_exp2((maximum[h] - tile_max[h]) * scale_log2);
      maximum[h] = tile_max[h];
      offset[h] = tile_max[h] * scale_log2;
      sum[h] *= correction;
#pragma unroll
      for (int d = 0; d < HeadDim / 8; ++d) {
        output[d][2 * h] *= correction;
        output[d][2 * h + 1] *= correction;
      }
    }
#pragma unroll
    for (int j = 0; j < Columns / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[j][e] = fast_exp2(fmaf(s[j][e], scale_log2, -offset[e / 2]));
        sum[e / 2] += s[j][e];
      }
    }
  }
};

/// One block: forward_tile<HeadDim, Few>().rows() queries of one head. Each warp owns its rows
/// from scores to output. Grid: x = query tile * heads + head, y = sequence.
template <class T, int HeadDim, bool Few>
__global__ void __launch_bounds__(forward_tile<HeadDim, Few>().threads(), Few ? 1 : 0)
    prefill_kernel(heads_view<const T> q, heads_view<const T> k, heads_view<const T> v,
                   const std::int32_t* lengths, heads_view<T> out, float* lse, float scale_log2) {
  constexpr attention_tile P = forward_tile<HeadDim, Few>();
  constexpr int kKeys = P.columns, kQueries = P.rows(), kPitch = kPaddedHeadDim<HeadDim>;
  extern __shared__ __align__(16) std::byte shared[];
  follow_earlier_kernels();
  T* const q_tile = reinterpret_cast<T*>(shared);
  T* const k_tiles = q_tile + kQueries * kPitch;
  T* const v_tiles = k_tiles + 2 * kKeys * kPitch;

  const int head = static_cast<int>(blockIdx.x) % q.heads, sequence = blockIdx.y;
  const int kv_head = head / (q.heads / k.heads);
  // The last query tiles see the most keys: those of all heads start first.
  const int q0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) / q.heads * kQueries;
  const int length = sequence_length(lengths, sequence, q.tokens);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int warp_row = warp * 16 * P.row_tiles;

  const T* q_head = q.data + sequence * q.batch_stride + head * q.head_stride;
  const T* k_head = k.data + sequence * k.batch_stride + kv_head * k.head_stride;
  const T* v_head = v.data + sequence * v.batch_stride + kv_head * v.head_stride;

  const int tiles = q0 < length ? (min(q0 + kQueries, length) + kKeys - 1) / kKeys : 0;
  const auto fill = [&](const T* head, std::int64_t stride, T* slots, int tile) {
    copy_rows_async<HeadDim, kKeys, P.threads()>(slots + tile % 2 * kKeys * kPitch, head, stride,
                                                 tile * kKeys, length);
  };
  const auto fill_k = [&](int tile) {
    if (tile < tiles) fill(k_head, k.token_stride, k_tiles, tile);
  };
  const auto fill_v = [&](int tile) {
    if (tile < tiles) fill(v_head, v.token_stride, v_tiles, tile);
  };

  online_softmax<T, HeadDim, kKeys> rows[P.row_tiles];
  std::uint32_t kept[P.keep_rows ? P.row_tiles : 1][P.keep_rows ? HeadDim / 16 : 1][4];
  using scores = float[P.row_tiles][kKeys / 8][4];
  const auto multiply = [&](scores& s, int tile) {
    memset(s, 0, sizeof s);
    multiply_tile<T, HeadDim, P.row_tiles, kKeys, P.keep_rows>(s, kept, q_tile, warp_row,
                                                               k_tiles + tile % 2 * kKeys * kPitch);
  };
  const auto mask = [&](scores& s, int tile) {
    if ((tile + 1) * kKeys <= q0 + warp_row) return;  // the diagonal is not in this warp's rows
#pragma unroll
    for (int r = 0; r < P.row_tiles; ++r) {
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = tile * kKeys + 8 * j + 2 * quad + e % 2;
          const int query = q0 + warp_row + 16 * r + group + 8 * (e / 2);
          if (key > query) s[r][j][e] = -INFINITY;
        }
      }
    }
  };
  const auto take = [&](scores& s, int tile) {
    const T* v_tile = v_tiles + tile % 2 * kKeys * kPitch;
#pragma unroll
    for (int r = 0; r < P.row_tiles; ++r) rows[r].update(s[r], scale_log2);
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      // The C fragments of two score tiles are the A fragment of one k16 step over keys.
      std::uint32_t p[P.row_tiles][4];
#pragma unroll
      for (int r = 0; r < P.row_tiles; ++r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float(&pair)[4] = s[r][2 * step + i / 2];
          p[r][i] = pack_pair<T>(pair[2 * (i % 2)], pair[2 * (i % 2) + 1]);
        }
      }
#pragma unroll
      for (int d = 0; d < HeadDim / 8; d += 2) {
        std::uint32_t b[4];
        load_b_fragments_trans<HeadDim>(b, v_tile, 16 * step, 8 * d);
#pragma unroll
        for (int r = 0; r < P.row_tiles; ++r) {
          mma_m16n8k16<T>(rows[r].output[d], p[r], b[0], b[1]);
          mma_m16n8k16<T>(rows[r].output[d + 1], p[r], b[2], b[3]);
        }
      }
    }
  };

  copy_rows_async<HeadDim, kQueries, P.threads()>(q_tile, q_head, q.token_stride, q0, length);
  if constexpr (P.ahead) {
    // The products of a tile run beside the exponentials of the one before.
    fill_k(0);
    cp_async_commit();
    fill_v(0);
    fill_k(1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    keep_rows<T, HeadDim, P.row_tiles, P.keep_rows>(kept, q_tile, warp_row);
    scores now, next;
    multiply(now, 0);
    for (int tile = 0; tile < tiles; ++tile) {
      cp_async_wait<0>();
      __syncthreads();  // K of the next tile, V of this one; the slots of those before are free
      fill_v(tile + 1);
      fill_k(tile + 2);
      cp_async_commit();
      if (tile * kKeys >= q0 + warp_row + 16 * P.row_tiles) continue;  // behind all of this warp
      mask(now, tile);
      multiply(next, tile + 1);  // behind the last tile of no meaning
      take(now, tile);
      memcpy(now, next, sizeof now);
    }
  } else {
    fill_k(0);
    fill_v(0);
    cp_async_commit();
    for (int tile = 0; tile < tiles; ++tile) {
      cp_async_wait<0>();
      __syncthreads();  // tile arrived; everybody has left the one before
      fill_k(tile + 1);
      fill_v(tile + 1);
      cp_async_commit();
      if (tile == 0) keep_rows<T, HeadDim, P.row_tiles, P.keep_rows>(kept, q_tile, warp_row);
      scores s;
      multiply(s, tile);
      mask(s, tile);
      take(s, tile);
    }
  }

  T* const out_head = out.data + sequence * out.batch_stride + head * out.head_stride;
#pragma unroll
  for (int r = 0; r < P.row_tiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = rows[r].sum[h];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const int token = q0 + warp_row + 16 * r + group + 8 * h;
      if (token >= q.tokens) continue;
      const bool live = token < length;
      const float inverse = live ? 1.0f / sum : 0.0f;
#pragma unroll
      for (int d = 0; d < HeadDim / 8; ++d) {
        const float(&o)[4] = rows[r].output[d];
        *reinterpret_cast<std::uint32_t*>(out_head + token * out.token_stride + 8 * d + 2 * quad) =
            live ? pack_pair<T>(o[2 * h] * inverse, o[2 * h + 1] * inverse) : 0u;
      }
      if (lse != nullptr && quad == 0) {
        const std::int64_t lse_row = std::int64_t{sequence} * q.heads + head;
        lse[lse_row * q.tokens + token] =
            live ? (rows[r].maximum[h] * scale_log2 + log2f(sum)) * kLn2 : 0.0f;
      }
    }
  }
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
