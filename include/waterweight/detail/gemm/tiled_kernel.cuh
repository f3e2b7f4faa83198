// The mma.sync GEMM for many rows: a cp.async pipeline through shared memory; a warp reads its
// fragments ahead of their mma, and converts INT8 weights between those of the step before.
#pragma once

#include <waterweight/detail/gemm/tiled_copy.cuh>
#include <waterweight/detail/gemm/tiled_fragments.cuh>
#include <waterweight/detail/gemm/tiled_output.cuh>
#include <waterweight/detail/gemm/tiled_parts.cuh>

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

/// What one block multiplies.
template <class T, class Element, tiled_tile Tile, bool Aligned>
class tiled_block {
  static constexpr tiled_policy P = tiled_policy_of(Tile, sizeof(Element));
  static constexpr int kWarpM = P.block_m / P.warps_m;
  static constexpr int kXBytes = P.block_m * x_places::kRowBytes;
  static constexpr int kStageBytes = P.stage_bytes(sizeof(Element));

 public:
  static constexpr int kOwn = P.block_n / P.warps_n / 8;  ///< neighbouring columns of Y of a lane
  static constexpr int kXTiles = kWarpM / 8, kWTiles = kOwn / 2;
  using sums = float[kWTiles][kXTiles][4];
  static constexpr float kUnit = w_reader<T, Element, kOwn>::kUnit;  ///< of the sums

  __device__ __forceinline__ tiled_block(const T* x, std::int64_t x_ld,
                                         const weight_operand<Element>& w, int m_count, int m0,
                                         int n0, std::byte* shared)
      : shared_(shared),
        x_copy_(x, x_ld, m_count, w.cols, m0),
        w_copy_(w.data, w.ld, w.rows, w.cols, n0),
        x_read_(threadIdx.x / 32 % P.warps_m * kWarpM),
        w_read_(threadIdx.x / 32 / P.warps_m * 8 * kOwn) {}

  /// acc += the products over tiles [begin, end) of K.
  __device__ __forceinline__ void multiply(sums& acc, int begin, int end) {
    left_ = end - begin - 1;
    x_copy_.copy_first(begin, x_tile(0), left_ > 0);
    w_copy_.copy_first(begin, w_tile(0), left_ > 0);
    cp_async_commit();
#pragma unroll
    for (int stage = 1; stage < P.stages - 1; ++stage) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) copy(i, stage);
      finish_copies();
    }
    cp_async_wait<P.stages - 2>();
    __syncthreads();
    w_read_.read(w_tile(0), 0, raw_, a_[0]);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) x_read_.read(x_tile(0), 0, group, b_[group]);
#pragma unroll
    for (int part = 0; part < weights::kParts; ++part) weights::convert(raw_, part, a_[0]);
    for (;;) {
      // Unrolled so that all places in shared memory are constants.
#pragma unroll
      for (int stage = 0; stage < P.stages; ++stage) {
        multiply_tile(acc, stage);
        if (left_ == 1 - P.stages) return;  // as many were computed as there are
      }
    }
  }

 private:
  using x_copier = tile_copier<x_places, T, P.block_m, P.threads(), Aligned>;
  using w_copier = tile_copier<w_places<Element, kOwn>, Element, P.block_n, P.threads(), Aligned>;
  using weights = w_reader<T, Element, kOwn>;
  static constexpr int kCopies = x_copier::kCopies + w_copier::kCopies;
  static constexpr int kTogether = x_reader<Element>::kTiles;
  static constexpr int kLast = kTiledSteps - 1;
  static constexpr int kGroups = kXTiles / kTogether;
  static constexpr int kMma = kXTiles * kWTiles;  ///< of a step
  /// Copies that are asked for together: after loads from shared memory ptxas puts three more
  /// instructions before the first of them.
  static constexpr int kBurst = 4;

  __device__ __forceinline__ std::byte* x_tile(int stage) const {
    return shared_ + stage * kStageBytes;
  }
  __device__ __forceinline__ std::byte* w_tile(int stage) const { return x_tile(stage) + kXBytes; }

  /// Copy i of both operands' next tiles.
  __device__ __forceinline__ void copy(int i, int stage) {
    if (i < x_copier::kCopies) {
      x_copy_.copy(i, x_tile(stage));
    } else {
      w_copy_.copy(i - x_copier::kCopies, w_tile(stage));
    }
  }
  __device__ __forceinline__ void finish_copies() {
    cp_async_commit();
    const bool more = --left_ > 0;
    x_copy_.advance(more);
    w_copy_.advance(more);
  }

  /// The tile in stage `stage`, which is known to the compiler. Its first fragments are there.
  __device__ __forceinline__ void multiply_tile(sums& acc, int stage) {
    const int filled = (stage + P.stages - 1) % P.stages;
#pragma unroll
    for (int step = 0; step < kTiledSteps; ++step) {
      if (step == kLast) {
        finish_copies();
        cp_async_wait<P.stages - 2>();
        __syncthreads();  // the next tile has arrived, and everybody has read this one
      }
      const int next = (step + 1) % kTiledSteps, from = step % 2, to = 1 - from;
      const int next_stage = step == kLast ? (stage + 1) % P.stages : stage;
      w_read_.read(w_tile(next_stage), next, raw_, a_[to]);
#pragma unroll
      for (int i = 0; i < kMma; ++i) {
        const int t = i / kXTiles, j = i % kXTiles, group = j / kTogether;
        auto& b = b_[group];
        mma_m16n8k16<T>(acc[t][j], a_[from][t], b[j % kTogether][0], b[j % kTogether][1]);
        between(step, i, filled);
        // In place of what has just been used for the last time.
        if (t == kWTiles - 1 && j % kTogether == kTogether - 1) {
          x_read_.read(x_tile(next_stage), next, group, b);
        }
      }
    }
  }

  /// What happens after mma i of a step: copies in all steps but the last; conversions, after the
  /// time that the weights take from shared memory.
  __device__ __forceinline__ void between(int step, int i, int filled) {
    constexpr int kBursts = (kCopies + kBurst - 1) / kBurst;
    constexpr int kCopyEvery = kLast * kMma / kBursts;
    const int slot = step * kMma + i;
    if (step < kLast && slot % kCopyEvery == kCopyEvery / 2) {
      const int first = slot / kCopyEvery * kBurst;
#pragma unroll
      for (int c = first; c < first + kBurst && c < kCopies; ++c) copy(c, filled);
    }
    constexpr int kWait = kMma / 4, kEvery = (kMma - kWait) / weights::kParts;
    const int after = i - kWait;
    if (after >= 0 && after % kEvery == 0 && after / kEvery < weights::kParts) {
      weights::convert(raw_, after / kEvery, a_[1 - step % 2]);
    }
  }

  std::byte* shared_;
  int left_;  ///< tiles of which no copy has been asked for, less those of which there was none
  x_copier x_copy_;
  w_copier w_copy_;
  x_reader<Element> x_read_;
  weights w_read_;
  typename weights::words raw_;
  typename weights::fragments a_[2];
  typename x_reader<Element>::fragments b_[kGroups];
};

template <class T, class Element, class Out, class Epilogue, tiled_tile Tile, bool Aligned>
__global__ void __launch_bounds__(tiled_policy_of(Tile, sizeof(Element)).threads(),
                                  tiled_policy_of(Tile, sizeof(Element)).blocks_per_sm)
    tiled_gemm_kernel(const T* __restrict__ x, std::int64_t x_ld,
                      tiled_output<Element, Out, Epilogue> output, tiled_parts parts) {
  constexpr tiled_policy P = tiled_policy_of(Tile, sizeof(Element));
  using block = tiled_block<T, Element, Tile, Aligned>;
  extern __shared__ __align__(128) std::byte tiles[];

  const weight_operand<Element>& w = output.w;
  const auto place_of = [&](int tile) {
    return tiled_place(tile, (output.m_count + P.block_m - 1) / P.block_m,
                       (w.rows + P.block_n - 1) / P.block_n);
  };
  typename block::sums acc = {};
  {
    const tiled_parts::share mine = parts.of_block(blockIdx.x);
    const tiled_place place = place_of(mine.tile);
    const int depth = (w.cols + kTiledBlockK - 1) / kTiledBlockK;
    block(x, x_ld, w, output.m_count, place.m * P.block_m, place.n * P.block_n, tiles)
        .multiply(acc, depth * mine.part / mine.count, depth * (mine.part + 1) / mine.count);
  }
  // What follows is computed anew: registers are for the loop over K.
  int index = blockIdx.x;
  asm volatile("" : "+r"(index));
  const tiled_parts::share mine = parts.of_block(index);
  if (!parts.combine(reinterpret_cast<float(&)[sizeof(acc) / sizeof(float)]>(acc), mine)) return;

  const tiled_place place = place_of(mine.tile);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int m = place.m * P.block_m + warp % P.warps_m * (P.block_m / P.warps_m) + lane % 4 * 2;
  const int n = place.n * P.block_n + (warp / P.warps_m * 8 + lane / 4) * block::kOwn;
  float scale[block::kOwn];
  output.read_scales(n, scale);
#pragma unroll
  for (int j = 0; j < block::kXTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float sum[block::kOwn];
#pragma unroll
      for (int i = 0; i < block::kOwn; ++i) sum[i] = block::kUnit * acc[i / 2][j][i % 2 * 2 + e];
      output.store(sum, scale, m + 8 * j + e, n);
    }
  }
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
