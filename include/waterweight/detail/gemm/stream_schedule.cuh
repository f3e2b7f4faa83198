// Which part of the product each block of the streaming kernel computes, how clusters claim groups
// of rows, and the barriers by which the warps of a block and the blocks of a cluster meet.
#pragma once

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/arch/cluster.cuh>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/gemm/stream_plan.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

inline constexpr int kStreamMaxInboxes = 4;

/// The block's mbarriers.
struct stream_barriers {
  std::uint64_t summed[kStreamBuffers];                        ///< the warps' sums are there
  std::uint64_t free[kStreamBuffers];                          ///< and have been read
  std::uint64_t claimed[kStreamClaims];                        ///< a claim is there
  std::uint64_t received[kStreamMaxInboxes];                   ///< the sums of all blocks are there
  std::uint64_t credit[kStreamMaxCluster][kStreamMaxInboxes];  ///< that block can take more

  /// By one warp, of which each lane has one claim's barrier. `warps`: those that have sums.
  __device__ __forceinline__ void init(int warps, int cluster) {
    static_assert(kStreamClaims == 32, "a lane each");
    mbarrier_init(claimed + threadIdx.x % 32, 1);
    mbarrier_init_fence();
    if (threadIdx.x % 32 != 0) return;
    for (int i = 0; i < kStreamBuffers; ++i) {
      mbarrier_init(summed + i, warps);
      mbarrier_init(free + i, 1);
    }
    if (cluster > 1) {
      for (int i = 0; i < kStreamMaxInboxes; ++i) {
        mbarrier_init(received + i, 1);
        for (int rank = 0; rank < cluster; ++rank) mbarrier_init(&credit[rank][i], 1);
      }
    }
    mbarrier_init_fence();
  }
};

/// What of the product a block computes: groups of rows over K in [k_begin, k_begin + k_count).
struct stream_share {
  int rank, cluster, clusters;
  int k_begin, k_count;
  bool claims;
  int total;                        ///< groups there are; of its own where shares are equal
  int row0, group_step, tile_step;  ///< rows: of group 0, from group to group, from tile to tile

  __device__ __forceinline__ stream_share(const stream_plan& plan, int rows, int cols)
      : rank(cluster_rank()),
        cluster(cluster_index()),
        clusters(plan.clusters),
        claims(plan.claims) {
    k_begin = rank * plan.slab;
    k_count = min(plan.slab, cols - k_begin);
    if (claims) {
      total = (rows + kStreamGroup - 1) / kStreamGroup;
      row0 = 0;
      group_step = kStreamGroup;
      tile_step = kStreamTile;
    } else {
      total =
          (plan.tiles + (cluster < plan.longer ? kStreamTiles : kStreamTiles - 1)) / kStreamTiles;
      row0 = cluster * kStreamTile;
      group_step = clusters * kStreamGroup;
      tile_step = clusters * kStreamTile;
    }
  }

  /// Row `row` of a group; past the last tile it is no row of W.
  __device__ __forceinline__ int channel(int group, int row) const {
    return row0 + group * group_step + row / kStreamTile * tile_step + row % kStreamTile;
  }
};

/// The groups that a block takes, one after another: at or above share.total there is none, nor any
/// after it. The first `known` are so from the start, or all of them; claims follow.
class stream_schedule {
 public:
  __device__ __forceinline__ stream_schedule(const stream_share& share, int known,
                                             std::uint64_t* claimed, const int* claim)
      : share_(share), known_(known), claimed_(claimed), claim_(claim) {}

  /// The i-th; i must not decrease from call to call.
  __device__ __forceinline__ int operator()(int i) {
    for (; at_ < i && group_ < share_.total; ++at_) group_ = read(at_ + 1);
    return group_;
  }

  /// The same by itself: up to the first i for which there is none.
  __device__ __forceinline__ int read(int i) const {
    if (!share_.claims) return i;
    if (i < known_) return share_.cluster + i * share_.clusters;
    const int entry = (i - known_) % kStreamClaims;
    mbarrier_wait(claimed_ + entry, (i - known_) / kStreamClaims & 1);
    return *static_cast<const volatile int*>(claim_ + entry);
  }

 private:
  const stream_share& share_;
  int known_;
  std::uint64_t* claimed_;
  const int* claim_;
  int at_ = -1, group_ = 0;
};

/// Sends 16 bytes to the shared memory of a block of the cluster, announced at a barrier there.
__device__ __forceinline__ void send(std::uint32_t target, std::uint32_t barrier, int rank,
                                     float4 value) {
  asm volatile(
      "{\n"
      ".reg .b32 array, barrier;\n"
      "mapa.shared::cluster.u32 array, %0, %2;\n"
      "mapa.shared::cluster.u32 barrier, %1, %2;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [array], {%3,%4,%5,%6}, "
      "[barrier];\n"
      "}\n" ::"r"(target),
      "r"(barrier), "r"(rank), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
      : "memory");
}
/// The same for one word.
__device__ __forceinline__ void send(std::uint32_t target, std::uint32_t barrier, int rank,
                                     int value) {
  asm volatile(
      "{\n"
      ".reg .b32 array, barrier;\n"
      "mapa.shared::cluster.u32 array, %0, %2;\n"
      "mapa.shared::cluster.u32 barrier, %1, %2;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [array], %3, [barrier];\n"
      "}\n" ::"r"(target),
      "r"(barrier), "r"(rank), "r"(value)
      : "memory");
}

/// Claims groups for a cluster: one thread of its first block.
class stream_claimer {
 public:
  __device__ __forceinline__ stream_claimer(const stream_share& share, stream_counters* counters,
                                            int known, int blocks, int* claim,
                                            std::uint64_t* claimed)
      : share_(share),
        counters_(counters),
        known_(known),
        blocks_(blocks),
        claim_(claim),
        claimed_(claimed) {}

  /// The first ones; earlier kernels must have ended.
  __device__ __forceinline__ void begin() {
    const int first = atomicAdd(&counters_->claimed, kStreamAhead);
    for (int i = 0; i < kStreamAhead && !ended_; ++i) hand_out(first + i);
    if (!ended_) next_ = atomicAdd(&counters_->claimed, 1);
  }

  /// Once for every group that has been multiplied: hands out what was asked for the last time.
  __device__ __forceinline__ void advance() {
    if (ended_) return;
    hand_out(next_);
    if (!ended_) next_ = atomicAdd(&counters_->claimed, 1);
  }

 private:
  __device__ __forceinline__ void hand_out(int i) {
    const int group = known_ * share_.clusters + i, entry = count_++ % kStreamClaims;
    for (int rank = 0; rank < blocks_; ++rank) {
      send(shared_address(claim_ + entry), shared_address(claimed_ + entry), rank, group);
    }
    if (group < share_.total) return;
    ended_ = true;
    if (atomicAdd(&counters_->ended, 1) == share_.clusters - 1) *counters_ = {0, 0};
  }

  const stream_share& share_;
  stream_counters* counters_;
  int known_, blocks_;
  int* claim_;
  std::uint64_t* claimed_;
  int next_ = 0, count_ = 0;
  bool ended_ = false;
};

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
