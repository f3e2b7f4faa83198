// Shapes of the wgmma kernel's work, and what each takes of shared memory.
#pragma once

#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

enum class wgmma_tile {
  rows64_tokens16,  ///< this and the next five by mma.sync: INT8 weights only
  rows144_tokens16,
  rows192_tokens16,
  rows48_tokens32,
  rows64_tokens32,
  rows144_tokens32,
  rows128_tokens32,
  rows192_tokens32,  ///< 16-bit weights only
  rows128_tokens64,
  rows192_tokens64,
  rows128_tokens128,
  rows192_tokens128,
  rows128_tokens176,  ///< where tiles of 256 tokens leave too many SMs idle
  rows128_tokens256,
  rows128_tokens88,
};
inline constexpr int kWgmmaTiles = 15;
inline constexpr int kWgmmaMaxSplits = 8;  ///< blocks of a portable cluster

inline constexpr int kWgmmaBlockK = 64;  ///< K elements per block of K: 128 bytes of X
inline constexpr int kWgmmaMaxStages = 8;

/// The warps of a warpgroup that share K: see mma_consumer.
inline constexpr int kMmaWarps = 4;
inline constexpr int kMmaAdded = 2;  ///< groups of 8 tokens that they add at a time

/// A block computes rows() x tokens of Y^T; each warpgroup of consumers owns group_rows() of W.
struct wgmma_policy {
  int warpgroups;         ///< of consumers
  int tokens;             ///< rows of X: N of the instruction
  int multicast;          ///< blocks of a cluster that share their rows of X, where K is not split
  int chunk;              ///< tokens that a warpgroup hands to the copy engine at a time
  int mma_row_tiles = 0;  ///< of 16 rows: a warpgroup's, where it multiplies by mma.sync
  int residents = 1;      ///< blocks on an SM, of this launch or the next

  /// Multiplies by mma.sync: see mma_consumer.
  WATERWEIGHT_HOST_DEVICE constexpr bool mma() const { return mma_row_tiles > 0; }
  /// INT8 weights are multiplied by mma.sync for up to 32 tokens, others never. For more tokens and
  /// few channels they need small tiles too.
  WATERWEIGHT_HOST_DEVICE constexpr bool takes(bool quantized) const {
    return quantized ? mma() || tokens > 32 || warpgroups == 2 : !mma();
  }
  /// Warps that read a stage.
  WATERWEIGHT_HOST_DEVICE constexpr int readers() const { return consumers() / (mma() ? 64 : 32); }

  /// For so many stages a block asks for weights before the first of X. A block that starts late
  /// has X wait behind them: with all stages' weights ahead, 7680 x 2560 takes 11 % longer at 64
  /// tokens, and with those of four stages 2560 x 2560 takes 1.5 % longer at 512. X of few tokens
  /// is small.
  WATERWEIGHT_HOST_DEVICE constexpr int early_stages() const { return mma() ? 4 : 2; }
  /// 48 rows cut some products into tiles for which there are just enough SMs.
  WATERWEIGHT_HOST_DEVICE constexpr int group_rows() const {
    return mma() ? 16 * mma_row_tiles : 64;
  }
  WATERWEIGHT_HOST_DEVICE constexpr int rows() const { return group_rows() * warpgroups; }
  WATERWEIGHT_HOST_DEVICE constexpr int consumers() const { return 128 * warpgroups; }
  /// Consumers need more registers than their share: the producer is then a whole warpgroup, though
  /// one thread of it works, because only whole warpgroups can hand registers to others.
  WATERWEIGHT_HOST_DEVICE constexpr bool wide() const {
    return tokens > 128 || (warpgroups > 2 && tokens > 16);
  }
  /// Two blocks that share K exchange halves of their sums: see wgmma_halves. Of 256 tokens these
  /// would take more shared memory and registers than there are.
  WATERWEIGHT_HOST_DEVICE constexpr bool halves() const { return tokens < 256; }
  WATERWEIGHT_HOST_DEVICE constexpr int threads() const {
    return consumers() + (wide() ? 128 : 32);
  }
  WATERWEIGHT_HOST_DEVICE constexpr int producer_registers() const {
    return warpgroups == 2 ? 24 : 32;
  }
  WATERWEIGHT_HOST_DEVICE constexpr int consumer_registers() const {
    return warpgroups == 2 ? 240 : 160;
  }
};

WATERWEIGHT_HOST_DEVICE constexpr wgmma_policy wgmma_policy_of(wgmma_tile tile) {
  switch (tile) {
    case wgmma_tile::rows64_tokens16:
      return {1, 16, 1, 16, 4, 2};
    case wgmma_tile::rows144_tokens16:
      return {3, 16, 1, 16, 3};
    case wgmma_tile::rows192_tokens16:
      return {3, 16, 1, 16, 4};
    case wgmma_tile::rows48_tokens32:
      return {1, 32, 1, 32, 3, 2};
    case wgmma_tile::rows64_tokens32:
      return {1, 32, 1, 32, 4, 2};
    case wgmma_tile::rows144_tokens32:
      return {3, 32, 1, 32, 3};
    case wgmma_tile::rows128_tokens32:
      return {2, 32, 1, 32};
    case wgmma_tile::rows192_tokens32:
      return {3, 32, 1, 32};
    case wgmma_tile::rows128_tokens64:
      return {2, 64, 1, 64};
    case wgmma_tile::rows128_tokens88:
      return {2, 88, 1, 88};
    case wgmma_tile::rows192_tokens64:
      return {3, 64, 1, 64};
    case wgmma_tile::rows128_tokens128:
      return {2, 128, 1, 64};
    case wgmma_tile::rows192_tokens128:
      return {3, 128, 1, 64};
    case wgmma_tile::rows128_tokens176:
      return {2, 176, 2, 88};
    default:
      return {2, 256, 2, 64};
  }
}

/// What a tile with weights of `element_bytes` takes of dynamic shared memory, from a multiple of
/// 1024: the stages, then the staging of finished values. Sums that other
/// blocks send lie over the stages.
struct wgmma_layout {
  int blocks;   ///< of K in a stage
  int w_bytes;  ///< of a stage: rows of 64 or 128 bytes, as wide as the swizzle
  int x_bytes;  ///< of one block: rows of 128 bytes
  int stages;
  int staging;   ///< of one warpgroup
  int exchange;  ///< likewise, behind that: sums of warps that share K
  int total;

  WATERWEIGHT_HOST_DEVICE constexpr int stage_k() const { return blocks * kWgmmaBlockK; }
  WATERWEIGHT_HOST_DEVICE constexpr int stage_bytes() const { return w_bytes + blocks * x_bytes; }
  WATERWEIGHT_HOST_DEVICE constexpr int ring_bytes() const { return stages * stage_bytes(); }
};

WATERWEIGHT_HOST_DEVICE constexpr wgmma_layout wgmma_layout_of(wgmma_policy p, int element_bytes) {
  // TMA takes its time by the row: where weights are most of what is loaded, INT8 rows are as wide
  // as those of X, 128 elements.
  const int blocks = element_bytes == 1 && p.tokens <= 128 ? 2 : 1;
  const int w_bytes = p.rows() * blocks * kWgmmaBlockK * element_bytes;
  const int x_bytes = p.tokens * kWgmmaBlockK * 2;
  const int stage = w_bytes + blocks * x_bytes;
  // Chunks of 16-bit values. All of a tile's have a place, unless that would cost a stage that
  // is needed more; float values take two places.
  const int chunks = p.tokens / p.chunk;
  const int places = chunks == 4 && element_bytes == 2 ? 2 : (chunks < 2 ? 2 : chunks);
  const int staging = places * p.chunk * 64 * 2;
  // For 64 rows always: warps without rows of their own read there too.
  const int exchange = p.mma() ? (kMmaWarps - 1) * 64 * kMmaAdded * 8 * 4 : 0;
  const int behind = p.warpgroups * (staging + exchange);
  // Of an SM's 228 KiB each block costs 1 KiB more than it asks for, 1 KiB goes to the alignment
  // of the stages and some bytes to the barriers.
  const int available = 228 * 1024 / p.residents - 2048 - 256 - behind;
  const int fitting = available / stage < kWgmmaMaxStages ? available / stage : kWgmmaMaxStages;
  const int stages = p.mma() ? fitting / 2 * 2 : fitting;  // two halves of a warpgroup take turns
  return {blocks, w_bytes, x_bytes, stages, staging, exchange, stages * stage + behind};
}

/// How a product is cut into tiles. splits: the blocks of a cluster that share K of one tile; 1:
/// blocks take tile after tile.
struct wgmma_cut {
  wgmma_tile tile;
  int splits;
};

/// The first `rows` rows of W are cut one way. Those that are left, if any, are computed by a
/// second launch, on the SMs that the first leaves or never takes.
struct wgmma_plan {
  wgmma_cut first;
  std::int64_t rows;
  wgmma_cut rest;
};

/// When a launch of the wgmma kernel may begin.
enum class wgmma_start {
  after_earlier_kernels,
  weights_early,   ///< weights may be read before: no kernel that may still run writes to them
  beside_earlier,  ///< all of it: the kernel ahead is the first launch of the same product
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
