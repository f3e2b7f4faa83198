// How the streaming kernel (stream_kernel.cuh) cuts a product with few tokens, and what a block
// takes of shared memory.
#pragma once

#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kStreamWarps = 10;  ///< that multiply, splitting the block's K between them
inline constexpr int kStreamThreads = 32 * (kStreamWarps + 2);
inline constexpr int kStreamChunk = 64;  ///< bytes of a row of W that a warp takes at a time
inline constexpr int kStreamTile = 4;    ///< neighbouring rows of W, copied together
inline constexpr int kStreamGroup = 16;  ///< rows of W multiplied together: four tiles
inline constexpr int kStreamTiles = kStreamGroup / kStreamTile;
inline constexpr int kStreamMaxSlots = 20;  ///< of the ring, a tile each
/// Groups that may be in the ring at a time, and one to keep their barriers' phases apart.
inline constexpr int kStreamMaxGroups = kStreamMaxSlots / kStreamTiles + 2;
inline constexpr int kStreamMaxCluster = 8;  ///< a portable cluster
/// The largest one that is chosen. On H200 (gemm_bench, INT8) clusters of 4 took 10.7 us for one
/// token times 2560 x 10240 and the gemv kernel 15.1, but clusters of 7 took 39 us for 4096 x 16384
/// and the gemv kernel 30.
inline constexpr int kStreamPayingCluster = 4;
inline constexpr int kStreamBuffers = 2;    ///< of sums on their way from the warps
inline constexpr int kStreamInboxes = 2;    ///< groups whose sums a block can take from others
inline constexpr int kStreamLookAhead = 2;  ///< tiles asked of L2 beyond what the ring holds
inline constexpr int kStreamScales = 8;     ///< groups whose scales are there or on their way

/// Chunks of a row whose activations a warp keeps in registers, with up to 8 * n_tiles tokens.
WATERWEIGHT_HOST_DEVICE constexpr int stream_chunks(int n_tiles, int element_bytes) {
  return n_tiles <= 2 ? 4 * element_bytes : 2 * element_bytes;
}

/// Blocks on an SM. Where two fit, one computes while the next kernel's first weights arrive.
WATERWEIGHT_HOST_DEVICE constexpr int stream_blocks(int n_tiles, int element_bytes) {
  return n_tiles == 1 && element_bytes == 1 ? 2 : 1;
}

WATERWEIGHT_HOST_DEVICE constexpr int stream_n_tiles(std::int64_t m) { return m <= 8 ? 1 : 2; }

/// Floats in the sums of one group of rows.
WATERWEIGHT_HOST_DEVICE constexpr int stream_sums(int n_tiles) { return n_tiles * 128; }

/// Blocks of a cluster have a slab of K each and the same rows: every clusters-th tile.
struct stream_plan {
  int cluster;      ///< blocks that split K
  int clusters;     ///< of the grid
  int tiles;        ///< of rows that each cluster has
  int longer;       ///< clusters that have one more, the first ones
  int chunks;       ///< of K that a block has; the last one of the cluster may have fewer
  int warp_chunks;  ///< of those, how many a warp has
  int warps;        ///< that have some
  int last_warps;   ///< in the last block of the cluster
  int slots;        ///< of the ring
  bool whole_rows;  ///< a tile is one piece of memory
  int trigger;      ///< groups read when the next kernel may start, or kStreamAfterFilling

  /// Bytes from row to row in the ring. Where rows are copied one by one, neighbours lie in
  /// different halves of the banks.
  WATERWEIGHT_HOST_DEVICE constexpr int pitch() const {
    return (whole_rows ? chunks : chunks | 1) * kStreamChunk;
  }
  WATERWEIGHT_HOST_DEVICE constexpr int tile_bytes() const { return kStreamTile * pitch(); }

  /// Sums of the block's warps, then those that blocks of the cluster send.
  WATERWEIGHT_HOST_DEVICE constexpr int sums_bytes(int n_tiles) const {
    return (kStreamBuffers * kStreamWarps + (cluster > 1 ? kStreamInboxes * cluster : 0)) *
           stream_sums(n_tiles) * static_cast<int>(sizeof(float));
  }
  WATERWEIGHT_HOST_DEVICE constexpr int shared_bytes(int n_tiles) const {
    return slots * tile_bytes() + sums_bytes(n_tiles);
  }
};

/// Hopper's barriers and dependent launches, and shared memory for two blocks on an SM.
constexpr bool may_stream(const device_info& device) {
  return device.compute_capability >= 90 && device.max_shared_bytes >= 224 * 1024;
}

inline constexpr int kStreamAfterFilling = -1;  ///< when the copies that fill the ring have arrived

/// When the next kernel may start, for blocks with `groups` groups of so many bytes. Its first
/// weights should be asked for behind this one's last: earlier, its blocks compete for memory and
/// have nothing left to ask for when it falls idle. Small products are best followed at once, but
/// for more than four tokens: loading their activations takes too long while it asks for weights.
/// On H200, INT8, one token, us (the next kernel after filling; at once; three groups before the
/// end; four): 2560 x 2560 3.5, 2.9; 7680 x 2560 6.4, 6.5, 6.0, 6.6; 17920 x 2560 13.0, 12.7, 12.0,
/// 12.8; 50304 x 2560 30.3, 31.1, 32, 30.3; 2560 x 10240 9.8, 11.6, 9.2, 10.9.
/// gemm_bench, which takes turns with cuBLAS, does not agree everywhere: 17920 x 2560 takes 13.1
/// there, and took 12.3 when the warp that fills the ring started the next kernel eight tiles
/// before its end; 2560 x 2560 takes 3.2 (3.8 then), 2560 x 10240 9.4 (10.5).
constexpr int stream_trigger(std::int64_t m, std::int64_t groups, std::int64_t group_bytes) {
  if (groups * group_bytes <= 128 * 1024) return m <= 4 ? 0 : kStreamAfterFilling;
  const std::int64_t left = groups > 20 ? 4 : 3;
  return groups > left ? static_cast<int>(groups - left) : kStreamAfterFilling;
}

/// The plan for m tokens and W[n, k], rows `ld` elements apart, on `sms` SMs with a cluster of at
/// least `least_cluster`; clusters == 0 if K is too long.
constexpr stream_plan make_stream_plan(int sms, std::int64_t m, std::int64_t n, std::int64_t k,
                                       std::int64_t ld, int element_bytes, int least_cluster = 1) {
  const int n_tiles = stream_n_tiles(m);
  const auto divide_up = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  const std::int64_t all = divide_up(k * element_bytes, kStreamChunk);
  std::int64_t cluster = divide_up(all, kStreamWarps * stream_chunks(n_tiles, element_bytes));
  if (cluster < least_cluster) cluster = least_cluster < all ? least_cluster : all;
  const std::int64_t chunks = divide_up(all, cluster);
  cluster = divide_up(all, chunks);
  if (cluster > kStreamMaxCluster || sms < cluster) return {};

  const std::int64_t tiles = divide_up(n, kStreamTile);
  // A cluster stays inside a GPC, so that large ones leave SMs idle, and all must run at once.
  const std::int64_t most_clusters =
      cluster <= 2 || sms <= 16 ? sms / cluster : (sms - 12) / cluster;
  const std::int64_t each = divide_up(tiles, most_clusters);
  // One block on every SM: wherever there is room for two, those of the next kernel go in pairs.
  const bool on_all = cluster <= 2 && each > 1 && stream_blocks(n_tiles, element_bytes) > 1;
  const std::int64_t clusters = on_all ? most_clusters : divide_up(tiles, each);
  stream_plan plan{};
  plan.cluster = static_cast<int>(cluster);
  plan.clusters = static_cast<int>(clusters);
  plan.tiles = static_cast<int>(tiles / clusters);
  plan.longer = static_cast<int>(tiles % clusters);
  plan.chunks = static_cast<int>(chunks);
  plan.warp_chunks = static_cast<int>(divide_up(chunks, kStreamWarps));
  plan.warps = static_cast<int>(divide_up(chunks, plan.warp_chunks));
  plan.last_warps = static_cast<int>(divide_up(all - (cluster - 1) * chunks, plan.warp_chunks));
  plan.whole_rows = cluster == 1 && ld == k && k * element_bytes % kStreamChunk == 0;
  const int room = 224 * 1024 / stream_blocks(n_tiles, element_bytes) - plan.sums_bytes(n_tiles);
  const std::int64_t fitting = room / plan.tile_bytes();
  const std::int64_t useful = each < kStreamTiles ? kStreamTiles : each;
  plan.slots = static_cast<int>(fitting < useful ? fitting : useful);
  if (plan.slots > kStreamMaxSlots) plan.slots = kStreamMaxSlots;
  plan.trigger =
      stream_trigger(m, divide_up(each, kStreamTiles), kStreamGroup * kStreamChunk * chunks);
  return plan;
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
