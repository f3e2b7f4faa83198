// The mma.sync GEMM for many rows: a cp.async pipeline through shared memory; a warp reads its
// fragments ahead of their mma, and converts INT8 weights between those of the step before.
#pragma once

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

/// What one block multiplies.
template <class T, class Element, tiled_tile Tile, bool Aligned>
class tiled_block {
  static constexpr tiled_policy P = tiled_policy_of(Tile, sizeof(Element));
  static constexpr int kWarpM = P.block_m / P.warps_m;
  static constexpr int kXBytes = P.block_m * x_places::kRowBytes;
  static constexpr int kStageBytes = P.stage_bytes(sizeof(Element));
  static constexpr int kGroupTiles = 4;  ///< fragments of X read together
  static constexpr int kGroups = kWarpM / 8 / kGroupTiles;

 public:
  static constexpr int kOwn = P.block_n / P.warps_n / 8;  ///< neighbouring columns of Y of a lane
  static constexpr int kXTiles = kWarpM / 8;
  using sums = float[kOwn / 2][kXTiles][4];
  static constexpr float kUnit = w_reader<T, Element, kOwn>::kUnit;  ///< of the sums

  __device__ __forceinline__ tiled_block(const T* x, std::int64_t x_ld,
                                         const weight_operand<Element>& w, int m_count, int m0,
                                         int n0, std::byte* shared)
      : shared_(shared),
        x_copy_(x, x_ld, m_count, w.cols, m0),
        w_copy_(w.data, w.ld, w.rows, w.cols, n0),
        x_read_(threadIdx.x / 32 % P.warps_m * kWarpM),
        w_read_(threadIdx.x / 32 / P.warps_m * 8 * kOwn) {}

  /// acc += the products over K in `tiles` tiles.
  __device__ __forceinline__ void multiply(sums& acc, int tiles) {
    left_ = tiles - 1;
    x_copy_.copy_first(x_tile(0), left_ > 0);
    w_copy_.copy_first(w_tile(0), left_ > 0);
    cp_async_commit();
#pragma unroll
    for (int stage = 1; stage < kAhead - 1; ++stage) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) copy(i, stage);
      finish_copies();
    }
    cp_async_wait<kAhead - 2>();
    __syncthreads();
    w_read_.read(w_tile(0), 0, raw_, a_[0]);
#pragma unroll
    for (int part = 0; part < weights::kParts; ++part) weights::convert(raw_, part, a_[0]);
    x_read_.read(x_tile(0), 0, 0, b_[0]);
    for (int tile = 0;;) {
#pragma unroll
      for (int stage = 0; stage < P.stages; ++stage) {
        multiply_tile(acc, stage);
        if (++tile == tiles) return;
      }
    }
  }

 private:
  using x_copier = tile_copier<x_places, T, P.block_m, P.threads(), Aligned>;
  using w_copier = tile_copier<w_places<Element, kOwn>, Element, P.block_n, P.threads(), Aligned>;
  using weights = w_reader<T, Element, kOwn>;
  static constexpr int kCopies = x_copier::kCopies + w_copier::kCopies;

  // The next step's weights are read before a group of each step, in a tile's last step after the
  // barrier that says that the next tile is there. INT8 needs the whole step to convert them, so
  // that a tile is still being read after its barrier and its stage can be filled a tile later.
  static constexpr bool kEarly = is_quantized_v<Element>;
  static constexpr int kReadGroup = kEarly ? 0 : kGroups - 1;
  static constexpr int kAhead = P.stages - kEarly;  ///< while tile i is multiplied, i + this - 1
                                                    ///< is on its way
  static constexpr int kBarrier = (kTiledSteps - 1) * kGroups + kReadGroup;  ///< a group of a tile
  static constexpr int kGroupMma = 2 * kGroupTiles * (kOwn / 2);

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
    const int filled = (stage + kAhead - 1) % P.stages;
#pragma unroll
    for (int u = 0; u < kTiledSteps * kGroups; ++u) {
      const int step = u / kGroups, group = u % kGroups;
      if (u == kBarrier) {
        finish_copies();
        cp_async_wait<kAhead - 2>();
        __syncthreads();  // the next tile has arrived, and everybody is done with the one before
      }
      const int next_step = (step + 1) % kTiledSteps;
      const int next_stage = step + 1 == kTiledSteps ? (stage + 1) % P.stages : stage;
      if (group == kReadGroup) w_read_.read(w_tile(next_stage), next_step, raw_, a_[1 - step % 2]);
      if (group + 1 < kGroups) {
        x_read_.read(x_tile(stage), step, group + 1, b_[1 - u % 2]);
      } else {
        x_read_.read(x_tile(next_stage), next_step, 0, b_[1 - u % 2]);
      }
#pragma unroll
      for (int i = 0; i < kGroupMma; ++i) {
        const int k = i / (kGroupMma / 2), t = i / kGroupTiles % (kOwn / 2), j = i % kGroupTiles;
        const std::uint32_t(&b)[4] = b_[u % 2][j];
        mma_m16n8k16<T>(acc[t][group * kGroupTiles + j], a_[step % 2][k][t], b[2 * k],
                        b[2 * k + 1]);
        between(u, i, filled);
      }
    }
  }

  /// What happens after mma i of group u: in the groups before the barrier, copies; after the time
  /// that the weights take from shared memory, conversions.
  __device__ __forceinline__ void between(int u, int i, int filled) {
    constexpr int kCopyEvery = kBarrier * kGroupMma / kCopies;
    const int slot = u * kGroupMma + i;
    if (u < kBarrier && slot % kCopyEvery == kCopyEvery / 2 && slot / kCopyEvery < kCopies) {
      copy(slot / kCopyEvery, filled);
    }
    if constexpr (kEarly) {
      constexpr int kWait = 8, kEvery = (kGroups * kGroupMma - kWait) / weights::kParts;
      const int step = u / kGroups, after = slot - step * kGroups * kGroupMma - kWait;
      if (after >= 0 && after % kEvery == 0 && after / kEvery < weights::kParts) {
        weights::convert(raw_, after / kEvery, a_[1 - step % 2]);
      }
    }
  }

  std::byte* shared_;
  int left_;  ///< tiles of which no copy has been asked for
  x_copier x_copy_;
  w_copier w_copy_;
  x_reader<Element, kGroupTiles> x_read_;
  weights w_read_;
  typename weights::words raw_;
  typename weights::fragments a_[2];
  typename x_reader<Element, kGroupTiles>::fragments b_[2];
};

template <class T, class Element, class Out, class Epilogue, tiled_tile Tile, bool Aligned>
__global__ void __launch_bounds__(tiled_policy_of(Tile, sizeof(Element)).threads(),
                                  tiled_policy_of(Tile, sizeof(Element)).blocks_per_sm)
    tiled_gemm_kernel(const T* __restrict__ x, std::int64_t x_ld,
                      tiled_output<Element, Out, Epilogue> output) {
  constexpr tiled_policy P = tiled_policy_of(Tile, sizeof(Element));
  using block = tiled_block<T, Element, Tile, Aligned>;
  extern __shared__ __align__(128) std::byte shared[];

  const weight_operand<Element>& w = output.w;
  const tiled_place place(blockIdx.x, (output.m_count + P.block_m - 1) / P.block_m,
                          (w.rows + P.block_n - 1) / P.block_n);
  typename block::sums acc = {};
  block(x, x_ld, w, output.m_count, place.m * P.block_m, place.n * P.block_n, shared)
      .multiply(acc, (w.cols + kTiledBlockK - 1) / kTiledBlockK);

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
