// Tile shapes and the choice among them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kTiledBlockK = 64;  ///< elements of K that a stage holds

enum class tiled_tile { m64_n64, m128_n128, m128_n256 };

/// A block of the tiled kernel computes block_m x block_n of Y.
struct tiled_policy {
  int block_m;  ///< rows of X
  int block_n;  ///< rows of W
  int warps_m;
  int warps_n;
  int stages;
  int blocks_per_sm;  ///< for which registers are to leave room

  WATERWEIGHT_HOST_DEVICE constexpr int threads() const { return 32 * warps_m * warps_n; }
  WATERWEIGHT_HOST_DEVICE constexpr int stage_bytes(int element_bytes) const {
    return kTiledBlockK * (2 * block_m + element_bytes * block_n);
  }
  WATERWEIGHT_HOST_DEVICE constexpr int shared_bytes(int element_bytes) const {
    return stages * stage_bytes(element_bytes);
  }

  /// What a warp leaves of a part of a tile in the workspace: its sums, some to a lane, and a flag.
  WATERWEIGHT_HOST_DEVICE static constexpr int part_bytes(int lane_sums) {
    return 32 * 4 * lane_sums + 16;
  }
  constexpr int part_bytes() const {
    return warps_m * warps_n * part_bytes(block_m * block_n / threads());
  }
};

/// How a product is cut: `whole` tiles of Y, the others along K into `splits` parts, at most as
/// many as there are kTiledBlockK of K.
struct tiled_plan {
  tiled_tile tile;
  std::int64_t whole =
      std::numeric_limits<std::int64_t>::max();  ///< all of them if there are fewer
  int splits = 1;
};

/// For INT8 weights (element_bytes 1) warps are narrow: each converts 32 rows of W for all of the
/// block's rows of X, because the mma unit waits a cycle for nearly every other instruction. For
/// 16-bit weights they are square, which takes the fewest loads from shared memory.
WATERWEIGHT_HOST_DEVICE constexpr tiled_policy tiled_policy_of(tiled_tile tile, int element_bytes) {
  const bool int8 = element_bytes == 1;
  switch (tile) {
    case tiled_tile::m64_n64:
      return {64, 64, 2, 2, 4, 3};
    case tiled_tile::m128_n128:
      return int8 ? tiled_policy{128, 128, 1, 4, 4, 2} : tiled_policy{128, 128, 2, 2, 3, 2};
    default:
      return int8 ? tiled_policy{128, 256, 1, 8, 4, 1} : tiled_policy{128, 256, 2, 4, 3, 1};
  }
}

/// What sharing tiles may take of the workspace: for two parts of the largest tile per SM.
constexpr std::size_t tiled_workspace_bytes(int sms) {
  return std::size_t{2} * sms * tiled_policy_of(tiled_tile::m128_n256, 1).part_bytes();
}

/// The default choice: of the plans that fit into shared memory and the workspace the one that
/// should take the least time, by what tiles took on H200 (compute_80 code, INT8 weights; 16-bit
/// ones change all of them alike): the SM with the most of them takes one after the other.
struct default_tiled_selector {
  struct tile_time {
    std::int64_t block;   ///< nanoseconds for kTiledBlockK of K
    std::int64_t fixed;   ///< for first loads and storing
    std::int64_t adding;  ///< for each part of a shared tile
  };
  static constexpr tile_time time_of(tiled_tile tile) {
    switch (tile) {
      case tiled_tile::m64_n64:
        return {240, 1200, 2500};
      case tiled_tile::m128_n128:
        return {880, 2100, 500};
      default:
        return {1670, 3300, 9700};
    }
  }
  static constexpr int kMaxSplits = 8;

  static constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
  }

  /// The fastest plan for a tile. workspace: bytes that it may use.
  static constexpr tiled_plan fastest(tiled_tile tile, int sms, std::int64_t m, std::int64_t n,
                                      std::int64_t k, std::size_t workspace, std::int64_t* least) {
    const tiled_policy p = tiled_policy_of(tile, 1);
    const tile_time t = time_of(tile);
    const std::int64_t tiles = divide_up(m, p.block_m) * divide_up(n, p.block_n);
    const std::int64_t depth = divide_up(k, kTiledBlockK), one = depth * t.block + t.fixed;
    *least = divide_up(tiles, sms) * one;
    tiled_plan best{tile};
    // Only what is left after whole rounds is worth sharing.
    const std::int64_t rounds = tiles / sms, rest = tiles - rounds * sms;
    for (int splits = 2; splits <= kMaxSplits && splits <= depth; ++splits) {
      if (rest * (splits - 1) * p.part_bytes() > static_cast<std::int64_t>(workspace)) break;
      const std::int64_t part = divide_up(depth, splits) * t.block + t.fixed;
      const std::int64_t needed =
          rounds * one + divide_up(rest * splits, sms) * part + splits * t.adding;
      if (needed < *least) {
        *least = needed;
        best = {tile, tiles - rest, splits};
      }
    }
    return best;
  }

  constexpr tiled_plan operator()(const device_info& device, std::int64_t m, std::int64_t n,
                                  std::int64_t k, int element_bytes, std::size_t workspace) const {
    tiled_plan best{tiled_tile::m64_n64};
    std::int64_t least = 0;
    for (tiled_tile tile : {tiled_tile::m64_n64, tiled_tile::m128_n128, tiled_tile::m128_n256}) {
      if (tile != tiled_tile::m64_n64 &&
          tiled_policy_of(tile, element_bytes).shared_bytes(element_bytes) >
              device.max_shared_bytes) {
        continue;
      }
      std::int64_t needed = 0;
      const tiled_plan plan = fastest(tile, device.sm_count, m, n, k, workspace, &needed);
      if (tile == tiled_tile::m64_n64 || needed < least) {
        best = plan;
        least = needed;
      }
    }
    return best;
  }
};

enum class gemm_kind { gemv, tiled };

/// The default choice, but that the streaming kernel (stream_kernel.cuh) takes the place of gemv
/// where it runs and pays (kStreamPayingCluster), and wgmma that of tiled. `aligned`: rows of X and
/// W start on 16-byte boundaries and K % 16 == 0.
struct default_gemm_selector {
  constexpr gemm_kind operator()(std::int64_t m, bool aligned) const {
    return m <= 16 && aligned ? gemm_kind::gemv : gemm_kind::tiled;
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
