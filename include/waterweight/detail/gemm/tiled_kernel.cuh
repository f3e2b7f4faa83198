// The mma.sync GEMM for many rows: a cp.async pipeline through shared memory; a warp reads its
// fragments one step of K ahead of their mma, and converts INT8 weights between those of the step
// before.
#pragma once

#include <waterweight/detail/gemm/policy.cuh>
#include <waterweight/detail/gemm/tiled_copy.cuh>
#include <waterweight/detail/gemm/tiled_fragments.cuh>
#include <waterweight/detail/gemm/tiled_output.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Blocks that run together share rows of X and of W: tiles of rows of X vary first, in groups
/// whose X the L2 can hold.
struct tiled_place {
  static constexpr int kGroup = 16;
  int m, n;  ///< in tiles

  __device__ __forceinline__ tiled_place(int index, int m_tiles, int n_tiles) {
    const int group = index / (kGroup * n_tiles), inside = index - group * kGroup * n_tiles;
    const int width = min(kGroup, m_tiles - group * kGroup);
    n = inside / width;
    m = group * kGroup + inside - n * width;
  }
};

template <class T, class Element, class Out, class Epilogue, tiled_tile Tile, bool Aligned>
__global__ void __launch_bounds__(tiled_policy_of(Tile).threads(),
                                  tiled_policy_of(Tile).blocks_per_sm)
    tiled_gemm_kernel(const T* __restrict__ x, std::int64_t x_ld,
                      tiled_output<Element, Out, Epilogue> output) {
  constexpr tiled_policy P = tiled_policy_of(Tile);
  constexpr int kOwn = P.warp_n() / 8, kWTiles = P.warp_n() / 16, kXTiles = P.warp_m() / 8;
  constexpr int kStages = P.stages(sizeof(Element));
  constexpr int kXBytes = P.block_m * x_places::kRowBytes;
  constexpr int kStageBytes = kXBytes + P.block_n * w_places<Element, kOwn>::kRowBytes;
  using x_copier = tile_copier<x_places, T, P.block_m, P.threads(), Aligned>;
  using w_copier = tile_copier<w_places<Element, kOwn>, Element, P.block_n, P.threads(), Aligned>;
  using weights = w_reader<Element, kOwn>;
  extern __shared__ __align__(128) std::byte shared[];

  const weight_operand<Element>& w = output.w;
  const tiled_place place(blockIdx.x, (output.m_count + P.block_m - 1) / P.block_m,
                          (w.rows + P.block_n - 1) / P.block_n);
  const int m0 = place.m * P.block_m, n0 = place.n * P.block_n;
  const int warp = threadIdx.x / 32;
  const int warp_m0 = warp % P.warps_m * P.warp_m(), warp_n0 = warp / P.warps_m * P.warp_n();

  x_copier x_copy(x, x_ld, output.m_count, w.cols, m0);
  w_copier w_copy(w.data, w.ld, w.rows, w.cols, n0);
  constexpr int kCopies = x_copier::kCopies + w_copier::kCopies;
  // Copy i of both operands' next tiles.
  const auto copy = [&](int i, std::byte* stage) {
    if (i < x_copier::kCopies) {
      x_copy.copy(i, stage);
    } else {
      w_copy.copy(i - x_copier::kCopies, stage + kXBytes);
    }
  };
  const auto advance = [&] {
    cp_async_commit();
    x_copy.advance();
    w_copy.advance();
  };
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) copy(i, shared + stage * kStageBytes);
    advance();
  }
  cp_async_wait<kStages - 2>();
  __syncthreads();

  const x_reader<Element, kXTiles> x_read(warp_m0);
  const weights w_read(warp_n0);
  float acc[kWTiles][kXTiles][4] = {};
  std::uint32_t a[2][kWTiles][4], b[2][kXTiles][2], raw[weights::kWords];
  x_read.read(shared, 0, b[0]);
  w_read.read(shared + kXBytes, 0, raw);
#pragma unroll
  for (int part = 0; part < weights::kParts; ++part) {
    weights::template convert<T>(raw, part, a[0]);
  }

  const int tiles = (w.cols + kTiledBlockK - 1) / kTiledBlockK;
  int current = 0, filled = (kStages - 1) * kStageBytes;  // offsets of the stages at hand
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int step = 0; step < kTiledSteps; ++step) {
      constexpr int kLast = kTiledSteps - 1;
      if (step == kLast) {
        current = current == (kStages - 1) * kStageBytes ? 0 : current + kStageBytes;
        cp_async_wait<kStages - 2>();
        __syncthreads();  // the next tile has arrived, and everybody has read this one
      }
      const int next = (step + 1) % kTiledSteps, from = step % 2, to = 1 - from;
      w_read.read(shared + current + kXBytes, next, raw);
      x_read.read(shared + current, next, b[to]);
      // Between the mma: after a quarter of them, which cover the time that the weights take from
      // shared memory, the conversions; in the steps before the last one, copies.
      constexpr int kMma = kXTiles * kWTiles, kWait = kMma / 4;
      constexpr int kEvery = (kMma - kWait) / weights::kParts;
      constexpr int kStepCopies = (kCopies + kLast - 1) / kLast, kCopyEvery = kMma / kStepCopies;
#pragma unroll
      for (int i = 0; i < kMma; ++i) {
        const int t = i / kXTiles, j = i % kXTiles;
        mma_m16n8k16<T>(acc[t][j], a[from][t], b[from][j][0], b[from][j][1]);
        if (i >= kWait && (i - kWait) % kEvery == 0 && (i - kWait) / kEvery < weights::kParts) {
          weights::template convert<T>(raw, (i - kWait) / kEvery, a[to]);
        }
        const int copied = step * kStepCopies + i / kCopyEvery;
        if (step < kLast && i % kCopyEvery == kCopyEvery / 2 && i / kCopyEvery < kStepCopies &&
            copied < kCopies) {
          copy(copied, shared + filled);
        }
      }
      if (step == kLast - 1) {
        advance();
        filled = filled == (kStages - 1) * kStageBytes ? 0 : filled + kStageBytes;
      }
    }
  }

  const int lane = threadIdx.x % 32, n = n0 + warp_n0 + lane / 4 * kOwn;
  float scale[kOwn];
  output.read_scales(n, scale);
#pragma unroll
  for (int j = 0; j < kXTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float sum[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        sum[i] = weights::template kUnit<T> * acc[i / 2][j][i % 2 * 2 + e];
      }
      output.store(sum, scale, m0 + warp_m0 + 8 * j + lane % 4 * 2 + e, n);
    }
  }
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
