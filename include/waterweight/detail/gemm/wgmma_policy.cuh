// Shapes of the wgmma kernel's work, and what each takes of shared memory.
#pragma once

#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

enum class wgmma_tile {
  rows128_tokens256,
  rows192_tokens128,
  split_rows128_tokens128,  ///< a cluster splits K
  split_rows128_tokens64,
};
inline constexpr int kWgmmaMaxSplits = 8;  ///< blocks of a portable cluster

/// A block computes rows() x tokens of Y^T; each warpgroup of consumers owns 64 rows of W.
struct wgmma_policy {
  int warpgroups;     ///< of consumers; one more warp feeds them
  int tokens;         ///< rows of X: N of the instruction
  int multicast;      ///< blocks of a cluster that share their rows of X
  bool persistent;    ///< blocks take tile after tile; else a cluster splits K of one tile
  int blocks_per_sm;  ///< what registers and stages leave room for

  WATERWEIGHT_HOST_DEVICE constexpr int rows() const { return 64 * warpgroups; }
  WATERWEIGHT_HOST_DEVICE constexpr int consumers() const { return 128 * warpgroups; }
  /// Consumers need more registers than their share: the producer is then a whole warpgroup, though
  /// one thread of it works, because only whole warpgroups can hand registers to others.
  WATERWEIGHT_HOST_DEVICE constexpr bool wide() const { return persistent; }
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
    case wgmma_tile::rows128_tokens256:
      return {2, 256, 2, true, 1};
    case wgmma_tile::rows192_tokens128:
      return {3, 128, 1, true, 1};
    case wgmma_tile::split_rows128_tokens128:
      return {2, 128, 1, false, 1};
    default:
      return {2, 64, 1, false, 2};
  }
}

inline constexpr int kWgmmaBlockK = 64;  ///< K elements of a stage: 128 bytes of X, a swizzle span
inline constexpr int kWgmmaMaxStages = 8;
/// Tokens that a warp hands through shared memory at a time.
inline constexpr int kWgmmaChunk = 32;
/// Floats between the tokens of `rows` sums in shared memory: what a warp writes together, four
/// pairs of tokens by eight rows, then meets 32 different banks.
WATERWEIGHT_HOST_DEVICE constexpr int wgmma_sum_pitch(int rows) { return rows + 4; }

/// What a tile with weights of `element_bytes` takes of dynamic shared memory, from a multiple of
/// 1024.
struct wgmma_layout {
  int blocks;   ///< of K in a stage
  int w_bytes;  ///< of one block
  int x_bytes;
  int stages;
  int sums;  ///< offset of the staging of finished sums; in a block of one tile over the stages
  int total;

  WATERWEIGHT_HOST_DEVICE constexpr int stage_k() const { return blocks * kWgmmaBlockK; }
  WATERWEIGHT_HOST_DEVICE constexpr int stage_bytes() const { return blocks * (w_bytes + x_bytes); }
};

WATERWEIGHT_HOST_DEVICE constexpr wgmma_layout wgmma_layout_of(wgmma_policy p, int element_bytes) {
  const int w_bytes = p.rows() * kWgmmaBlockK * element_bytes;
  const int x_bytes = p.tokens * kWgmmaBlockK * 2;
  // With few tokens, converting INT8 is more work than the products: two blocks then share the
  // barriers and addresses of a stage.
  const int blocks = element_bytes == 1 && p.tokens <= 128 ? 2 : 1;
  // An SM has 228 KiB, of which each block costs 1 KiB more than it asks for, 1 KiB goes to the
  // alignment of the stages and some bytes to the barriers.
  const int available = 228 * 1024 / p.blocks_per_sm - 2 * 1024 - 256;
  const int staging = p.persistent ? p.consumers() / 32 * kWgmmaChunk * wgmma_sum_pitch(16) *
                                         static_cast<int>(sizeof(float))
                                   : 0;
  const int stage = blocks * (w_bytes + x_bytes);
  const int fitting = (available - staging) / stage;
  const int stages = fitting < kWgmmaMaxStages ? fitting : kWgmmaMaxStages;
  return {blocks,
          w_bytes,
          x_bytes,
          stages,
          p.persistent ? stages * stage : 0,
          stages * stage + staging};
}

/// How a product is cut. splits: the blocks that share K of a tile; of persistent ones, any number
/// above 1 means that they share the tiles of the last rounds evenly.
struct wgmma_plan {
  wgmma_tile tile;
  int splits;
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
