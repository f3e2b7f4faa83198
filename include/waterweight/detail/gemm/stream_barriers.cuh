// Which part of the product a block of the streaming kernel computes, and the barriers by which
// its warps and the blocks of a cluster meet.
#pragma once

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/arch/cluster.cuh>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/gemm/stream_plan.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// The named barrier by which the warps' sums in a buffer are known to be there. 0 is everybody's.
__device__ __forceinline__ int stream_summed(int buffer) { return 1 + buffer; }

/// The block's mbarriers.
struct stream_barriers {
  std::uint64_t full[kStreamMaxGroups];                     ///< a group is there
  std::uint64_t empty[kStreamMaxSlots];                     ///< a tile has been read, by each warp
  std::uint64_t free[kStreamBuffers];                       ///< a group's sums have been read
  std::uint64_t received[kStreamInboxes];                   ///< the sums of all blocks are there
  std::uint64_t credit[kStreamMaxCluster][kStreamInboxes];  ///< that block can take more

  /// Those of the ring that who fills it needs, by one thread.
  __device__ __forceinline__ void init_full() {
#pragma unroll
    for (int i = 0; i < kStreamMaxGroups; ++i) mbarrier_init(full + i, kStreamTiles);
    mbarrier_init_fence();
  }

  /// The others, by a warp. `readers`: warps that multiply.
  __device__ __forceinline__ void init_others(const stream_plan& plan, int readers) {
    if (threadIdx.x % 32 != 0) return;
    for (int i = 0; i < plan.slots; ++i) mbarrier_init(empty + i, readers);
    for (int i = 0; i < kStreamBuffers; ++i) mbarrier_init(free + i, 32);
    if (plan.cluster > 1) {
      for (int i = 0; i < kStreamInboxes; ++i) {
        mbarrier_init(received + i, 1);
        for (int rank = 0; rank < plan.cluster; ++rank) mbarrier_init(&credit[rank][i], 1);
      }
    }
    mbarrier_init_fence();
  }
};

/// What of the product a block computes: its cluster's tiles over a range of K.
struct stream_share {
  int rank, cluster, clusters;
  int k_begin, k_bytes;  ///< of each row, bytes
  int tiles, warps;

  __device__ __forceinline__ stream_share(const stream_plan& plan, int row_bytes)
      : rank(cluster_rank()),
        cluster(cluster_index()),
        clusters(plan.clusters),
        k_begin(rank * plan.chunks * kStreamChunk),
        k_bytes(min(plan.chunks * kStreamChunk, row_bytes - k_begin)),
        tiles(plan.tiles + (cluster < plan.longer ? 1 : 0)),
        warps(rank == plan.cluster - 1 ? plan.last_warps : plan.warps) {}

  __device__ __forceinline__ int groups() const {
    return (tiles + kStreamTiles - 1) / kStreamTiles;
  }
  /// The first row of the i-th tile; past the last one it is no row of W.
  __device__ __forceinline__ int row_of(int tile) const {
    return (cluster + tile * clusters) * kStreamTile;
  }
};

/// The i-th of things that take turns at `count` places.
struct stream_turn {
  int place = 0;
  std::uint32_t parity = 0;

  __device__ __forceinline__ void advance(int count) {
    if (++place == count) {
      place = 0;
      parity ^= 1;
    }
  }
};

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
