// Tile shapes and the choice among them.
#pragma once

#include <cstdint>

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

/// The default choice: of the tiles that fit into shared memory the one that should take the least
/// time, by what tiles took on H200 (compute_80 code, INT8 weights; 16-bit ones change all of them
/// alike): the SM with the most of them takes one after the other.
struct default_tiled_selector {
  struct tile_time {
    std::int64_t block;  ///< nanoseconds for kTiledBlockK of K
    std::int64_t fixed;  ///< for first loads and storing
  };
  static constexpr tile_time time_of(tiled_tile tile) {
    switch (tile) {
      case tiled_tile::m64_n64:
        return {225, 1000};
      case tiled_tile::m128_n128:
        return {600, 2000};
      default:
        return {1100, 3000};
    }
  }

  static constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
  }

  static constexpr std::int64_t time(tiled_tile tile, int sms, std::int64_t m, std::int64_t n,
                                     std::int64_t k) {
    const tiled_policy p = tiled_policy_of(tile, 1);
    const tile_time t = time_of(tile);
    const std::int64_t tiles = divide_up(m, p.block_m) * divide_up(n, p.block_n);
    return divide_up(tiles, sms) * (divide_up(k, kTiledBlockK) * t.block + t.fixed);
  }

  constexpr tiled_tile operator()(const device_info& device, std::int64_t m, std::int64_t n,
                                  std::int64_t k, int element_bytes) const {
    tiled_tile best = tiled_tile::m64_n64;
    for (tiled_tile tile : {tiled_tile::m128_n128, tiled_tile::m128_n256}) {
      const bool fits = tiled_policy_of(tile, element_bytes).shared_bytes(element_bytes) <=
                        device.max_shared_bytes;
      if (fits && time(tile, device.sm_count, m, n, k) < time(best, device.sm_count, m, n, k)) {
        best = tile;
      }
    }
    return best;
  }
};

enum class gemm_kind { gemv, tiled };

/// The default choice, but that the streaming kernel (stream_kernel.cuh) takes the place of gemv
/// where it runs, and wgmma that of tiled. `aligned`: rows of X and W start on 16-byte boundaries
/// and K % 16 == 0.
struct default_gemm_selector {
  constexpr gemm_kind operator()(std::int64_t m, bool aligned) const {
    return m <= 16 && aligned ? gemm_kind::gemv : gemm_kind::tiled;
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
