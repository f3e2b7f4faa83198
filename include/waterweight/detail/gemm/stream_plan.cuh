// How the streaming kernel (stream_kernel.cuh) cuts a product with few tokens, and what a block
// takes of shared memory.
#pragma once

#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kStreamWarps = 10;  ///< that multiply, splitting the block's K between them
inline constexpr int kStreamThreads = 32 * (kStreamWarps + 2);
inline constexpr int kStreamChunk = 64;  ///< elements of K a warp multiplies by at a time
inline constexpr int kStreamTile = 4;    ///< neighbouring rows of W
inline constexpr int kStreamGroup = 16;  ///< rows of W multiplied together: four tiles
inline constexpr int kStreamTiles = kStreamGroup / kStreamTile;
inline constexpr int kStreamPart = 128;      ///< bytes of each row of a group requested together
inline constexpr int kStreamMaxCluster = 8;  ///< a portable cluster
inline constexpr int kStreamBuffers = 2;     ///< of sums on their way from the warps
inline constexpr int kStreamScales = 4;      ///< groups whose scales are there or on their way
inline constexpr int kStreamAhead = 3;       ///< groups claimed before there is room for them
inline constexpr int kStreamClaims = 32;     ///< claims that a block remembers

/// Chunks of K whose activations a warp keeps in registers, with up to 8 * n_tiles tokens.
WATERWEIGHT_HOST_DEVICE constexpr int stream_chunks(int n_tiles) { return 4 / n_tiles; }

/// Bytes of a row of W that belong to one warp.
WATERWEIGHT_HOST_DEVICE constexpr int stream_row_bytes(int n_tiles) {
  return stream_chunks(n_tiles) * kStreamChunk;
}

/// Parts of groups that a warp has under way or waiting. Two blocks fit on an SM of 228 KiB: one
/// computes while the next kernel's first weights arrive.
WATERWEIGHT_HOST_DEVICE constexpr int stream_depth(int) { return 4; }
/// The same in whole groups.
WATERWEIGHT_HOST_DEVICE constexpr int stream_depth_groups(int n_tiles) {
  return stream_depth(n_tiles) * kStreamPart / stream_row_bytes(n_tiles);
}
WATERWEIGHT_HOST_DEVICE constexpr int stream_ring_bytes(int n_tiles) {
  return kStreamWarps * stream_depth(n_tiles) * kStreamGroup * kStreamPart;
}

/// Floats in the sums of one group of rows.
WATERWEIGHT_HOST_DEVICE constexpr int stream_sums(int n_tiles) { return n_tiles * 128; }

/// Blocks of a cluster have a slab of K each. Clusters take groups of rows as they get to them, but
/// for the first ones, or, where there are few, equal shares: a group's tiles then lie apart, and
/// shares differ by no more than a tile.
struct stream_plan {
  int cluster;   ///< blocks that split K
  int clusters;  ///< of the grid
  int slab;      ///< K of a block, a multiple of kStreamPart; the last one may have less
  int tiles;     ///< of rows that each cluster has
  int longer;    ///< clusters that have one more, the first ones
  int inboxes;   ///< groups whose sums a block can take from the others of its cluster
  bool claims;   ///< groups are taken, tiles and longer mean nothing

  /// The ring, sums of the block's warps, then those that blocks of the cluster send.
  WATERWEIGHT_HOST_DEVICE constexpr int shared_bytes(int n_tiles) const {
    return stream_ring_bytes(n_tiles) +
           (kStreamBuffers * kStreamWarps + (cluster > 1 ? inboxes * cluster : 0)) *
               stream_sums(n_tiles) * static_cast<int>(sizeof(float));
  }
};

/// What clusters count in, zero between kernels.
struct alignas(16) stream_counters {
  int claimed;  ///< groups beyond the known ones
  int ended;    ///< clusters that found none left
};

/// Hopper's barriers and dependent launches, and shared memory for two blocks on an SM.
constexpr bool may_stream(const device_info& device) {
  return device.compute_capability >= 90 && device.max_shared_bytes >= 224 * 1024;
}

/// The plan for W[n, k] on `sms` SMs with a cluster of at least `least_cluster`; clusters == 0 if K
/// is too long.
constexpr stream_plan make_stream_plan(int sms, std::int64_t n, std::int64_t k, int n_tiles,
                                       int least_cluster = 1) {
  const std::int64_t parts = (k + kStreamPart - 1) / kStreamPart;
  const std::int64_t most = kStreamWarps * stream_row_bytes(n_tiles) / kStreamPart;
  std::int64_t cluster = (parts + most - 1) / most;
  if (cluster < least_cluster) cluster = least_cluster < parts ? least_cluster : parts;
  const std::int64_t slab = (parts + cluster - 1) / cluster;
  cluster = (parts + slab - 1) / slab;
  if (cluster > kStreamMaxCluster || sms < cluster) return {};

  const std::int64_t tiles = (n + kStreamTile - 1) / kStreamTile;
  // A cluster stays inside a GPC, so that large ones leave SMs idle, and all must run at once.
  const std::int64_t most_clusters =
      cluster <= 2 || sms <= 16 ? sms / cluster : (sms - 12) / cluster;
  const std::int64_t each = (tiles + most_clusters - 1) / most_clusters;
  const std::int64_t clusters = (tiles + each - 1) / each;
  return {static_cast<int>(cluster),
          static_cast<int>(clusters),
          static_cast<int>(slab * kStreamPart),
          static_cast<int>(tiles / clusters),
          static_cast<int>(tiles % clusters),
          cluster > 4 ? 2 : static_cast<int>(8 / cluster),
          (n + kStreamGroup - 1) / kStreamGroup >=
              clusters * (stream_depth_groups(n_tiles) + kStreamAhead + 1)};
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
