// Which part of the product each block of the wgmma kernel computes, in which order.
#pragma once

#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/gemm/wgmma_policy.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// A tile and stages [begin, end) of its K.
struct wgmma_segment {
  int row0, token0;
  int begin, end;
  std::int64_t tile_end;  ///< where the tile's last stage ends in the shared stretch
};

/// Work goes to clusters in units: tiles of neighbouring rows of W and the same tokens, one for
/// each block that shares rows of X. Clusters that run together share rows of X and of W: tokens
/// vary first, in groups whose X the L2 can hold.
///
/// Persistent blocks take whole units. With splits > 1, only while there is one for every cluster:
/// the stages of the units left over are cut into equal stretches, one for each cluster: the block
/// with the first part of a tile adds what the following clusters have summed, in their order.
/// These did so first thing in their stretches, the other block comes to it last. It waits for
/// clusters started before it: stretches are numbered against the order in which blocks start.
///
/// Other blocks have one tile, of which each block of the cluster sums a part of K.
template <wgmma_tile Tile>
struct wgmma_schedule {
  static constexpr wgmma_policy P = wgmma_policy_of(Tile);
  static constexpr int kTokenTiles = 16;

  int rank, blocks;       ///< of the cluster
  int cluster, clusters;  ///< of the grid
  int token_tiles, row_units, stages;
  int whole;          ///< units that one cluster computes alone
  std::int64_t rest;  ///< stages of the others

  __device__ __forceinline__ wgmma_schedule(int m_count, int rows, int cols, int stage_k,
                                            int splits)
      : rank(cluster_rank()), blocks(P.persistent ? P.multicast : splits) {
    const int row_span = P.rows() * P.multicast;
    token_tiles = (m_count + P.tokens - 1) / P.tokens;
    row_units = (rows + row_span - 1) / row_span;
    stages = (cols + stage_k - 1) / stage_k;
    clusters = gridDim.x / blocks;
    cluster = clusters - 1 - blockIdx.x / blocks;
    const int units = token_tiles * row_units;
    // The last whole round is shared too: stretches of a round and more keep the parts few.
    const int rounds = units / clusters;
    whole = splits == 1 || units % clusters == 0 ? units : max(rounds - 1, 0) * clusters;
    rest = static_cast<std::int64_t>(units - whole) * stages;
  }

  /// Where the stretch of a cluster begins.
  __device__ __forceinline__ std::int64_t stretch(int of_cluster) const {
    return rest * of_cluster / clusters;
  }

  __device__ __forceinline__ wgmma_segment segment(int unit, int begin, int end) const {
    const int group = unit / (kTokenTiles * row_units);
    const int inside = unit - group * kTokenTiles * row_units;
    const int width = min(kTokenTiles, token_tiles - group * kTokenTiles);
    const int row_unit = inside / width;
    const int token_tile = group * kTokenTiles + inside - row_unit * width;
    const int row_tile = P.multicast > 1 ? row_unit * P.multicast + rank : row_unit;
    return {row_tile * P.rows(), token_tile * P.tokens, begin, end,
            static_cast<std::int64_t>(unit - whole + 1) * stages};
  }

  /// Calls body(wgmma_segment) for all that the calling block computes.
  template <class Body>
  __device__ __forceinline__ void for_each_segment(const Body& body) const {
    if constexpr (P.persistent) {
      for (int unit = cluster; unit < whole; unit += clusters) body(segment(unit, 0, stages));
      const std::int64_t last = stretch(cluster + 1);
      for (std::int64_t at = stretch(cluster); at < last;) {
        const int begin = static_cast<int>(at % stages);
        const int end = static_cast<int>(min(std::int64_t{stages}, begin + last - at));
        body(segment(whole + static_cast<int>(at / stages), begin, end));
        at += end - begin;
      }
    } else {
      body(segment(cluster, stages * rank / blocks, stages * (rank + 1) / blocks));
    }
  }
};

#endif  // sm_90a

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
