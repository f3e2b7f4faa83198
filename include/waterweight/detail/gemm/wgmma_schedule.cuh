// Which part of the product each block of the wgmma kernel computes, in which order.
#pragma once

#include <type_traits>

#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/gemm/wgmma_policy.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// A tile and stages [begin, end) of its K.
struct wgmma_segment {
  int row0, token0;
  int begin, end;
};

/// Work goes to clusters in units. Where K is not split, blocks are persistent, and a unit is tiles
/// of neighbouring rows of W and the same tokens, one for each block that shares rows of X.
/// Clusters that run together share rows of X and of W: tokens vary first, in groups whose X the L2
/// can hold.
///
/// Where K is split, each cluster has one unit, a tile, and each of its blocks a part of K.
template <wgmma_tile Tile>
struct wgmma_schedule {
  static constexpr wgmma_policy P = wgmma_policy_of(Tile);
  static constexpr int kTokenTiles = 16;

  int splits;
  int rank, blocks;  ///< of the cluster
  int token_tiles, row_units, stages;

  __device__ __forceinline__ wgmma_schedule(int m_count, int rows, int cols, int stage_k,
                                            int split_blocks)
      : splits(split_blocks),
        rank(cluster_rank()),
        blocks(split_blocks > 1 ? split_blocks : P.multicast) {
    const int row_span = P.rows() * sharing();
    token_tiles = (m_count + P.tokens - 1) / P.tokens;
    row_units = (rows + row_span - 1) / row_span;
    stages = (cols + stage_k - 1) / stage_k;
  }

  /// How many blocks of the cluster share their rows of X.
  __device__ __forceinline__ int sharing() const {
    return P.multicast == 1 || splits > 1 ? 1 : P.multicast;
  }

  __device__ __forceinline__ wgmma_segment segment(int unit, int begin, int end) const {
    const int group = unit / (kTokenTiles * row_units);
    const int inside = unit - group * kTokenTiles * row_units;
    const int width = min(kTokenTiles, token_tiles - group * kTokenTiles);
    const int row_unit = inside / width;
    const int token_tile = group * kTokenTiles + inside - row_unit * width;
    const int row_tile = sharing() > 1 ? row_unit * P.multicast + rank : row_unit;
    return {row_tile * P.rows(), token_tile * P.tokens, begin, end};
  }

  /// Calls body(wgmma_segment, split) for all that the calling block computes; split::value: K is
  /// split.
  template <class Body>
  __device__ __forceinline__ void for_each_segment(const Body& body) const {
    const int cluster = blockIdx.x / blocks, clusters = gridDim.x / blocks;
    if (splits > 1) {
      body(segment(cluster, stages * rank / splits, stages * (rank + 1) / splits),
           std::true_type{});
    } else {
      const int units = token_tiles * row_units;
      for (int unit = cluster; unit < units; unit += clusters) {
        body(segment(unit, 0, stages), std::false_type{});
      }
    }
  }
};

#endif  // sm_90a

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
