// Causal attention of a prompt: online softmax over key tiles (FlashAttention-2, Dao 2023).
#pragma once

#include <waterweight/detail/attention/common.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kPrefillWarps = 4;
inline constexpr int kPrefillThreads = 32 * kPrefillWarps;
inline constexpr int kQueryTile = 16 * kPrefillWarps;

/// Keys per tile: half as many at head_dim 256, so that everything fits the 99 KiB of sm_86/sm_89
/// and the accumulators stay in registers.
template <int HeadDim>
inline constexpr int kKeyTile = HeadDim > 128 ? 32 : 64;

template <int HeadDim>
inline constexpr int kPrefillSharedBytes = (kQueryTile +
                                            4 * kKeyTile<HeadDim>)*kPaddedHeadDim<HeadDim> *
                                           2;

/// One block: 64 queries of one head. Each warp owns 16 of them, from scores to output.
template <class T, int HeadDim>
__global__ void __launch_bounds__(kPrefillThreads)
    prefill_kernel(heads_view<const T> q, heads_view<const T> k, heads_view<const T> v,
                   const std::int32_t* lengths, heads_view<T> out, float* lse, float scale_log2) {
  constexpr int kKeys = kKeyTile<HeadDim>, kKSteps = HeadDim / 16, kPitch = kPaddedHeadDim<HeadDim>;
  constexpr bool kKeepQ = HeadDim <= 128;  // above, q fragments would not fit beside the output
  extern __shared__ __align__(16) std::byte shared[];
  T* const q_tile = reinterpret_cast<T*>(shared);
  T* const k_tiles = q_tile + kQueryTile * kPitch;
  T* const v_tiles = k_tiles + 2 * kKeys * kPitch;

  const int head = blockIdx.y, sequence = blockIdx.z;
  const int kv_head = head / (q.heads / k.heads);
  // The last query tile sees the most keys: start it first.
  const int q0 = (gridDim.x - 1 - blockIdx.x) * kQueryTile;
  const int length = sequence_length(lengths, sequence, q.tokens);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int row = q0 + 16 * warp + group;  // and row + 8

  const T* q_head = q.data + sequence * q.batch_stride + head * q.head_stride;
  const T* k_head = k.data + sequence * k.batch_stride + kv_head * k.head_stride;
  const T* v_head = v.data + sequence * v.batch_stride + kv_head * v.head_stride;
  T* out_head = out.data + sequence * out.batch_stride + head * out.head_stride;

  const int tiles = q0 < length ? (min(q0 + kQueryTile, length) + kKeys - 1) / kKeys : 0;
  const auto fill = [&](int tile) {
    const int stage = tile % 2;
    copy_rows_async<HeadDim, kKeys, kPrefillThreads>(k_tiles + stage * kKeys * kPitch, k_head,
                                                     k.token_stride, tile * kKeys, length);
    copy_rows_async<HeadDim, kKeys, kPrefillThreads>(v_tiles + stage * kKeys * kPitch, v_head,
                                                     v.token_stride, tile * kKeys, length);
    cp_async_commit();
  };

  float o[HeadDim / 8][4] = {};
  float row_max[2] = {-INFINITY, -INFINITY};  // of scores in units of log2
  float row_sum[2] = {0.0f, 0.0f};            // this lane's share
  std::uint32_t q_fragments[kKeepQ ? kKSteps : 1][4];

  if (tiles > 0) {
    copy_rows_async<HeadDim, kQueryTile, kPrefillThreads>(q_tile, q_head, q.token_stride, q0,
                                                          length);
    fill(0);
  }
  for (int tile = 0; tile < tiles; ++tile) {
    cp_async_wait<0>();
    __syncthreads();  // tile arrived; everybody has left the other stage
    if (tile + 1 < tiles) fill(tile + 1);
    const T* k_tile = k_tiles + tile % 2 * kKeys * kPitch;
    const T* v_tile = v_tiles + tile % 2 * kKeys * kPitch;

    if constexpr (kKeepQ) {
      if (tile == 0) {
#pragma unroll
        for (int step = 0; step < kKSteps; ++step) {
          load_a_fragment<HeadDim>(q_fragments[step], q_tile, 16 * warp, 16 * step);
        }
      }
    }
    float s[kKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kKSteps; ++step) {
      std::uint32_t(&a)[4] = q_fragments[kKeepQ ? step : 0];
      if constexpr (!kKeepQ) load_a_fragment<HeadDim>(a, q_tile, 16 * warp, 16 * step);
#pragma unroll
      for (int j = 0; j < kKeys / 8; j += 2) {
        std::uint32_t b[4];
        load_b_fragments<HeadDim>(b, k_tile, 8 * j, 16 * step);
        mma_m16n8k16<T>(s[j], a, b[0], b[1]);
        mma_m16n8k16<T>(s[j + 1], a, b[2], b[3]);
      }
    }

    const bool diagonal = (tile + 1) * kKeys > q0 + 16 * warp;
    float tile_max[2] = {row_max[0], row_max[1]};
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key = tile * kKeys + 8 * j + 2 * quad + e % 2;
        s[j][e] = diagonal && key > row + 8 * (e / 2) ? -INFINITY : s[j][e] * scale_log2;
        tile_max[e / 2] = fmaxf(tile_max[e / 2], s[j][e]);
      }
    }
    float correction[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      tile_max[h] = fmaxf(tile_max[h], __shfl_xor_sync(0xffffffffu, tile_max[h], 1));
      tile_max[h] = fmaxf(tile_max[h], __shfl_xor_sync(0xffffffffu, tile_max[h], 2));
      // Tile 0 holds key 0, which every query sees: the maximum is finite from then on.
      correction[h] = exp2f(row_max[h] - tile_max[h]);
      row_max[h] = tile_max[h];
      row_sum[h] *= correction[h];
    }
#pragma unroll
    for (int d = 0; d < HeadDim / 8; ++d) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o[d][e] *= correction[e / 2];
    }
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[j][e] = exp2f(s[j][e] - row_max[e / 2]);
        row_sum[e / 2] += s[j][e];
      }
    }
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      // The C fragments of two score tiles are the A fragment of one k16 step over keys.
      const std::uint32_t p[4] = {pack_pair<T>(s[2 * step][0], s[2 * step][1]),
                                  pack_pair<T>(s[2 * step][2], s[2 * step][3]),
                                  pack_pair<T>(s[2 * step + 1][0], s[2 * step + 1][1]),
                                  pack_pair<T>(s[2 * step + 1][2], s[2 * step + 1][3])};
#pragma unroll
      for (int d = 0; d < HeadDim / 8; d += 2) {
        std::uint32_t b[4];
        load_b_fragments_trans<HeadDim>(b, v_tile, 16 * step, 8 * d);
        mma_m16n8k16<T>(o[d], p, b[0], b[1]);
        mma_m16n8k16<T>(o[d + 1], p, b[2], b[3]);
      }
    }
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    row_sum[h] += __shfl_xor_sync(0xffffffffu, row_sum[h], 1);
    row_sum[h] += __shfl_xor_sync(0xffffffffu, row_sum[h], 2);
    const int token = row + 8 * h;
    if (token >= q.tokens) continue;
    const bool live = token < length;
    const float inverse = live ? 1.0f / row_sum[h] : 0.0f;
#pragma unroll
    for (int d = 0; d < HeadDim / 8; ++d) {
      *reinterpret_cast<std::uint32_t*>(out_head + token * out.token_stride + 8 * d + 2 * quad) =
          live ? pack_pair<T>(o[d][2 * h] * inverse, o[d][2 * h + 1] * inverse) : 0u;
    }
    if (lse != nullptr && quad == 0) {
      const std::int64_t lse_row = std::int64_t{sequence} * q.heads + head;
      lse[lse_row * q.tokens + token] = live ? (row_max[h] + log2f(row_sum[h])) * kLn2 : 0.0f;
    }
  }
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
