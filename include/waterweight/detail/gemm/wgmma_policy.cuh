// Shapes of the wgmma kernel's work, and what each takes of shared memory.
#pragma once

#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

enum class wgmma_tile {
  rows128_tokens256,
  rows192_tokens128,
  rows128_tokens128,
  rows128_tokens64,
};

/// A block computes rows() x tokens of Y^T; each warpgroup of consumers owns 64 rows of W.
struct wgmma_policy {
  int warpgroups;   ///< of consumers; one more warp feeds them
  int tokens;       ///< rows of X: N of the instruction
  int multicast;    ///< blocks of a cluster that share their rows of X
  bool persistent;  ///< one block per SM takes tile after tile; else a cluster splits K of one tile
  int blocks_per_sm;  ///< what registers and stages must leave room for

  WATERWEIGHT_HOST_DEVICE constexpr int rows() const { return 64 * warpgroups; }
  WATERWEIGHT_HOST_DEVICE constexpr int consumers() const { return 128 * warpgroups; }
  /// Persistent blocks have a warpgroup of producers, though one thread of it works, because only
  /// whole warpgroups can hand registers to others.
  WATERWEIGHT_HOST_DEVICE constexpr int threads() const {
    return consumers() + (persistent ? 128 : 32);
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
    case wgmma_tile::rows128_tokens256:
      return {2, 256, 2, true, 1};
    case wgmma_tile::rows192_tokens128:
      return {3, 128, 1, true, 1};
    case wgmma_tile::rows128_tokens128:
      return {2, 128, 1, false, 1};
    default:
      return {2, 64, 1, false, 2};
  }
}

inline constexpr int kWgmmaBlockK = 64;  ///< K elements of a stage: 128 bytes of X, a swizzle span
inline constexpr int kWgmmaMaxStages = 8;
/// Tokens that a warpgroup of a persistent block hands through shared memory at a time.
inline constexpr int kWgmmaChunk = 32;
/// Floats between the tokens of `rows` sums in shared memory: what a warp writes together, four
/// pairs of tokens by eight rows, then meets 32 different banks.
WATERWEIGHT_HOST_DEVICE constexpr int wgmma_sum_pitch(int rows) { return rows + 4; }

/// Byte offsets in dynamic shared memory (from a multiple of 1024) of a tile with weights of
/// `element_bytes`.
struct wgmma_layout {
  int w_bytes;  ///< of one stage
  int x_bytes;
  int stages;
  int sums;  ///< offset of the staging of finished sums; in a block of one tile over the stages
  int total;

  WATERWEIGHT_HOST_DEVICE constexpr int stage_bytes() const { return w_bytes + x_bytes; }
  WATERWEIGHT_HOST_DEVICE constexpr int x_offset() const { return stages * w_bytes; }
};

WATERWEIGHT_HOST_DEVICE constexpr wgmma_layout wgmma_layout_of(wgmma_policy p, int element_bytes) {
  const int w_bytes = p.rows() * kWgmmaBlockK * element_bytes;
  const int x_bytes = p.tokens * kWgmmaBlockK * 2;
  // An SM has 228 KiB, of which each block costs 1 KiB more than it asks for, 1 KiB goes to the
  // alignment of the stages and some bytes to the barriers.
  const int available = 228 * 1024 / p.blocks_per_sm - 2 * 1024 - 256;
  const int staging = p.persistent ? p.warpgroups * kWgmmaChunk * wgmma_sum_pitch(64) *
                                         static_cast<int>(sizeof(float))
                                   : 0;
  const int fitting = (available - staging) / (w_bytes + x_bytes);
  const int stages = fitting < kWgmmaMaxStages ? fitting : kWgmmaMaxStages;
  const int ring = stages * (w_bytes + x_bytes);
  return {w_bytes, x_bytes, stages, p.persistent ? ring : 0, ring + staging};
}

/// How a product is cut: the tile, and the blocks that share K of each.
struct wgmma_plan {
  wgmma_tile tile;
  int splits;
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
