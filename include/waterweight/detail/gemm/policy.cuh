// Tile shapes and the choice among them.
#pragma once

#include <cstdint>

#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Shape of the tiled kernel's work: a block computes block_m x block_n of Y.
struct tiled_gemm_policy {
  int block_m;  ///< rows of X
  int block_n;  ///< rows of W
  int block_k;  ///< 64: 128 bytes of X, one shared-memory row
  int stages;   ///< cp.async pipeline depth
  int warps_m;
  int warps_n;

  WATERWEIGHT_HOST_DEVICE constexpr int threads() const { return 32 * warps_m * warps_n; }
  WATERWEIGHT_HOST_DEVICE constexpr int warp_m() const { return block_m / warps_m; }
  WATERWEIGHT_HOST_DEVICE constexpr int warp_n() const { return block_n / warps_n; }
  WATERWEIGHT_HOST_DEVICE constexpr bool operator==(const tiled_gemm_policy& o) const {
    return block_m == o.block_m && block_n == o.block_n && block_k == o.block_k &&
           stages == o.stages && warps_m == o.warps_m && warps_n == o.warps_n;
  }
};

/// Many rows: 64 x 32 per warp, 32 mma per 12 shared loads. 96 KiB at INT8; registers
/// allow one block per SM.
inline constexpr tiled_gemm_policy kLargeTile{128, 128, 64, 4, 2, 4};
/// Few rows: more, smaller blocks, because the grid is what fills the card.
inline constexpr tiled_gemm_policy kSmallTile{64, 64, 64, 4, 2, 2};

enum class gemm_kind { fixed_point, gemv, small_tile, large_tile };

/// The default choice, except that the streaming kernel (stream_kernel.cuh) takes INT8 weights in
/// place of fixed_point and gemv where it runs. `aligned`: rows of X and W start on 16-byte boundaries and K % 16 == 0.
/// `integer`: INT8 weights and a K that the integer kernel takes. Against cuBLAS FP16 on H200
/// (gemm_bench, geometric mean of Pythia-2.8B's shapes) it reaches 1.42 at M = 1 but 1.22 with two
/// tokens; the converting GEMV reaches 1.33 at M = 4.
struct default_gemm_selector {
  constexpr gemm_kind operator()(const device_info& device, std::int64_t m, std::int64_t n,
                                 bool aligned, bool integer) const {
    if (m == 1 && aligned && integer) return gemm_kind::fixed_point;
    if (m <= 16 && aligned) return gemm_kind::gemv;
    const std::int64_t large_tiles = ((m + 127) / 128) * ((n + 127) / 128);
    return m > 64 && large_tiles >= device.sm_count / 2 ? gemm_kind::large_tile
                                                        : gemm_kind::small_tile;
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
