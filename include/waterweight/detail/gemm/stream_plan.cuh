// How the streaming kernel (stream_kernel.cuh) cuts a product with few tokens, and what a block
// takes of shared memory.
#pragma once

#include <waterweight/detail/arch/tma.cuh>
#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// That multiply, splitting the block's K between them: two of each block on every SM quarter. With
/// ten a quarter has one more than its neighbours, and there are registers for too few addresses:
/// 7680 x 2560, one token, two blocks on an SM, H200: 5.5 us with ten and 5.25 with eight.
inline constexpr int kStreamWarps = 8;
inline constexpr int kStreamThreads = 32 * (kStreamWarps + 2);
inline constexpr int kStreamChunk = 64;  ///< bytes of a row of W that a warp takes at a time
inline constexpr int kStreamTile = 4;    ///< neighbouring rows of W, copied together
inline constexpr int kStreamGroup = 16;  ///< rows of W multiplied together: four tiles
inline constexpr int kStreamTiles = kStreamGroup / kStreamTile;
inline constexpr int kStreamMaxSlots = 20;  ///< of the ring, a tile each
/// Groups that may be in the ring at a time, and some to keep their barriers' phases apart: a power
/// of two, so that a group's number says which barrier and which phase.
inline constexpr int kStreamMaxGroups = 8;
static_assert(kStreamMaxGroups >= kStreamMaxSlots / kStreamTiles + 2);
inline constexpr int kStreamMaxCluster = 8;  ///< a portable cluster
/// The largest one that is chosen. On H200 (gemm_bench, INT8) clusters of 4 took 10.7 us for one
/// token times 2560 x 10240 and the gemv kernel 15.1, but clusters of 7 took 39 us for 4096 x 16384
/// and the gemv kernel 30.
inline constexpr int kStreamPayingCluster = 4;
inline constexpr int kStreamBuffers = 2;  ///< of sums on their way from the warps
inline constexpr int kStreamInboxes = 2;  ///< groups whose sums a block can take from others
inline constexpr int kStreamScales = 8;   ///< groups whose scales are there or on their way

/// Chunks of a row whose activations a warp keeps in registers.
WATERWEIGHT_HOST_DEVICE constexpr int stream_chunks(int element_bytes) { return 5 * element_bytes; }

/// Chunks of the loop for warps that have no more: K = 2048 or 4096 would have it idle for a fifth.
WATERWEIGHT_HOST_DEVICE constexpr int stream_fewer_chunks(int element_bytes) {
  return 4 * element_bytes;
}

/// Blocks on an SM. Where two fit, one computes while the next kernel's first weights arrive.
WATERWEIGHT_HOST_DEVICE constexpr int stream_blocks(int n_tiles, int element_bytes) {
  return n_tiles == 1 && element_bytes == 1 ? 2 : 1;
}

WATERWEIGHT_HOST_DEVICE constexpr int stream_n_tiles(std::int64_t m) { return m <= 8 ? 1 : 2; }

/// Floats in the sums of one group of rows.
WATERWEIGHT_HOST_DEVICE constexpr int stream_sums(int n_tiles) { return n_tiles * 128; }

/// What blocks have of rows of W: all, or slabs, which blocks of a cluster split K into, or all,
/// but of a row of W each of several rows is a part (see stream_fold). Kernels of their own: what
/// blocks without a cluster never run costs them registers and time. One token, H200, BF16, with
/// the code for clusters and without: 7680 x 2560 5.56 us, 5.16; 2560 x 2560 2.77, 2.67.
enum class stream_rows { whole, slabs, parts };

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
  int first;        ///< of those, how many are filled before activations are there
  int fold;         ///< log2 of the parts that a row of W is taken in, each as a row
  bool whole_rows;  ///< a tile is one piece of memory
  bool boxes;       ///< a tile is one box of a tensor map: see tma_make_slab_map
  int look_ahead;   ///< tiles asked of L2 beyond the first slots
  int left;  ///< tiles still to be asked for when the next kernel may start, or kStreamAtOnce

  constexpr stream_rows rows() const {
    return cluster > 1 ? stream_rows::slabs : fold > 0 ? stream_rows::parts : stream_rows::whole;
  }

  /// Bytes from row to row in the ring.
  WATERWEIGHT_HOST_DEVICE constexpr int pitch() const { return chunks * kStreamChunk; }
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

inline constexpr int kStreamAtOnce = -1;  ///< the next kernel may start with this one

/// What follows was measured as gemm_bench does, on H200, INT8, in us, and is for blocks of so many
/// tiles of which two fit on an SM.

/// When the next kernel may start: its first weights should be asked for behind this one's last.
/// Earlier, its blocks compete for memory and have nothing left to ask for when it falls idle. One
/// token, with 4, 6, 8 and 12 tiles left, 10240 x 2560 (20 tiles): 6.9, 6.2, 6.8, 8.4;
/// 17920 x 2560 (34): 10.7, 10.3, 11.3, 12.6; 50304 x 2560 (96): 29.9, 29.2, 29.1, 30.1; four,
/// 17920 x 2560: 10.9, 10.6, 11.9; eight, with 2, 4 and 6: 10240 x 2560: 7.0, 6.9, 6.6; 7680 x 2560
/// (15): 5.7, 5.6, 5.3; 17920 x 2560, with 4, 6 and 8: 11.1, 10.9, 11.1. Small products are best
/// followed at once, but for more than four tokens if tiles are copied whole: loading their
/// activations takes too long while it asks for weights (see kStreamRowsFrom). 2560 x 2560 at
/// once: 2.8, after filling: 3.5. One token, 4096 x 4096 in parts (16 tiles of 8 KiB; see
/// stream_fold), at once, with 4 and with 6 left: 5.7, 5.0, 5.0. In clusters of 4 that copy row by
/// row, with 4, 5 and 6 left, 2560 x 10240 (22): one token: 8.5, 8.4, 8.7; four: 8.9, 8.7, 8.9;
/// eight: 9.4, 9.0, 9.2.
constexpr int stream_left(std::int64_t m, std::int64_t cluster, std::int64_t tiles,
                          std::int64_t tile_bytes) {
  if (m <= 4 && tiles * tile_bytes < 128 * 1024) return kStreamAtOnce;
  if (cluster > 2) return 5;
  return tiles < 64 ? 6 : 8;
}

/// Bytes of the ring that are filled before activations are there, where it cannot hold a block's
/// tiles. Together with the tiles asked of L2 they are what the whole card has under way while
/// nothing is computed; memory is slower with more. With 4, 6, 8 and all 10 slots: one token,
/// 10240 x 2560: 6.5, 6.3, 6.5, 6.9; 17920 x 2560: 11.2, 10.9, 11.0, 11.5; four tokens,
/// 7680 x 2560: 5.5, 5.7, 6.3, 6.4; 50304 x 2560: 28.9, 29.0, 29.3, 29.5; eight tokens,
/// 10240 x 2560: 6.6, 7.0, 7.3; 7680 x 2560: 5.3, 6.5, 6.8; 17920 x 2560: 10.9, 11.2, 11.5. Most of
/// the shortest blocks' at once: with 5, 6 and 8 of 13 slots of 8 KiB, 4096 x 4096 in parts, one
/// token: 5.1, 4.95, 4.88.
constexpr std::int64_t stream_first_bytes(std::int64_t m, std::int64_t bytes) {
  if (bytes <= 128 * 1024) return 64 * 1024;
  return (m >= 2 ? 40 : 60) * 1024;
}

/// Tiles asked of L2 beyond those. Few for short blocks, which are followed before all of them have
/// come; more tokens' activations take longer to come the more is under way. With 2, 4 and 8 tiles:
/// 4096 x 4096 in parts (16 tiles of 8 KiB), one token: 4.88, 4.95; two: 5.02, 5.08; 7680 x 2560
/// (15 tiles of 10 KiB), one: -, 5.1, 5.2; five: 5.42, 5.40, 5.9; eight: 5.32, 5.32, 5.8;
/// 10240 x 2560 (20 tiles), one: -, 6.6, 6.3; three: 6.7, 6.5, 7.0; four: 6.8, 6.7, 7.1; five: 6.9,
/// 6.5, 7.0; eight: 6.8, 6.6, 7.1; 17920 x 2560 (34 tiles), two: -, 11.1, 10.8; four: -, 11.0,
/// 10.9; six: 11.3, 11.4, 11.6; eight: -, 10.9, 11.1; 50304 x 2560, four: -, 30.3, 29.4.
constexpr int stream_look_ahead(std::int64_t m, std::int64_t bytes) {
  const std::int64_t kib = bytes / 1024;
  if (kib <= 128) return 2;
  return kib <= 180 || (m > 2 && kib <= 260) || (m > 4 && kib <= 400) ? 4 : 8;
}

/// From so many tokens on, blocks with room for all of their tiles copy these row by row, though a
/// tile is one piece of memory, and are followed at once: it is the slower copying that lets the
/// activations through while the next kernel asks for its weights. One piece and rows, 2560 x 2560:
/// three tokens: 3.1, 2.9; four: 3.6, 3.0; eight: 3.75, 3.57; 6144 x 2048: three: 3.6, 3.9;
/// four: 4.5, 4.0; eight: 4.8, 4.2; 2048 x 2048: four: 2.16, 2.25; five: 2.8, 2.3; eight: 3.0, 2.7.
inline constexpr int kStreamRowsFrom = 4;

/// Rows of W that are too long for a block's warps are taken in two or four parts, rows themselves
/// of a matrix with as many more rows. It is multiplied with all parts of every token's
/// activations, as if they were tokens, and the products of parts with their own are added up:
/// tensor cores have eight columns anyway, whose other products cost nothing, and no block waits
/// for the sums of others. Log2 of the parts; 0: rows are whole, or blocks of a cluster split K.
/// With cluster and parts: one token, 2560 x 10240: 7.3, 6.7; 16384 x 4096: 16.6, 15.5; two: 7.4,
/// 7.3 and 16.6, 15.6; four, 16384 x 4096: 16.8, 15.6. The next kernel can move in as where rows
/// are whole: the four products of a layer of Pythia-2.8B one after another, one token: 24.9, 21.6;
/// two: 25.3, 22.5.
constexpr int stream_fold(std::int64_t m, std::int64_t k, std::int64_t ld, int element_bytes) {
  if (element_bytes > 1 || ld != k) return 0;
  const std::int64_t longest = kStreamWarps * stream_chunks(element_bytes) * kStreamChunk;
  int fold = 0;
  while (fold < 2 && k >> fold > longest) ++fold;
  const bool parts = k % (kStreamChunk << fold) == 0 && k >> fold <= longest && m << fold <= 8;
  return parts ? fold : 0;
}

/// The same of blocks that split K and copy their slabs as boxes, where the ring cannot hold all of
/// a block's tiles. 2560 x 10240 (22 tiles), eight tokens: 5, 6 and 8 slots filled first: 7.48,
/// 7.61, 7.64 (6, and 4 tiles left: 7.75); four: 7.55, 7.34, 7.28, but in a layer 8 are 1 % behind.
/// Tiles left, 4, 6 and 8: 2048 x 8192 (18), eight tokens: 5.45, 5.26, 5.26. 16384 x 4096 (63): 4
/// tiles ahead and 6 left, 8 and 8: 16.85, 16.55.
struct stream_reach {
  int first;
  int look_ahead;
  int left;
};
constexpr stream_reach stream_box_reach(std::int64_t m, std::int64_t tiles) {
  if (tiles >= 32) return {6, 8, 8};
  if (tiles < 20) return {6, 4, 6};
  return m > 6 ? stream_reach{5, 4, 8} : stream_reach{6, 4, 4};
}

/// The plan for m tokens and W[n, k], rows `ld` elements apart, on `sms` SMs with a cluster of at
/// least `least_cluster`; clusters == 0 if K is too long.
constexpr stream_plan make_stream_plan(int sms, std::int64_t m, std::int64_t n, std::int64_t k,
                                       std::int64_t ld, int element_bytes, int least_cluster = 1) {
  const int fold = least_cluster > 1 ? 0 : stream_fold(m, k, ld, element_bytes);
  m <<= fold;
  n <<= fold;
  k >>= fold;
  ld >>= fold;
  const int n_tiles = stream_n_tiles(m);
  const auto divide_up = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  const std::int64_t all = divide_up(k * element_bytes, kStreamChunk);
  std::int64_t cluster = divide_up(all, kStreamWarps * stream_chunks(element_bytes));
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
  plan.fold = fold;
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
  plan.first = plan.slots;
  plan.look_ahead = 2;
  plan.left = kStreamAtOnce;  // those of the next kernel cannot come too early: there is no room
  if (stream_blocks(n_tiles, element_bytes) > 1) {
    const std::int64_t bytes = plan.tile_bytes();
    plan.left = stream_left(m, cluster, each, bytes);
    // Memory is to be busy while those of the next kernel wait. Large clusters take 3 % longer.
    if (cluster <= 2) plan.look_ahead = 8;
    if (cluster == 1 && each <= plan.slots && m >= kStreamRowsFrom) {
      plan.whole_rows = false;
      plan.left = kStreamAtOnce;
    }
    if (cluster == 1 && each > plan.slots) {
      const std::int64_t first = stream_first_bytes(m, each * bytes) / bytes;
      if (first < plan.slots) plan.first = static_cast<int>(first);
      plan.look_ahead = stream_look_ahead(m, each * bytes);
    }
  }
  // K is exactly as long as its slabs. A block's bulk copies of 2560 bytes take 90 ns each (50304 x
  // 2560, row by row: 34.7 us, tile by tile: 28.5): one for each row of a slab is too many to keep
  // up with memory. Copied by rows and in boxes, one token: 16384 x 4096 22.2, 16.7; 2560 x
  // 10240 8.5, 7.4; 4096 x 4096 5.0, 5.2; eight: 5.7, 5.2.
  plan.boxes = cluster > 1 && k * element_bytes == cluster * chunks * kStreamChunk &&
               tma_slab_pieces(chunks * kStreamChunk) > 0;
  if (plan.boxes && each > plan.slots && stream_blocks(n_tiles, element_bytes) > 1) {
    const stream_reach reach = stream_box_reach(m, each);
    if (plan.slots > reach.first) plan.first = reach.first;
    plan.look_ahead = reach.look_ahead;
    plan.left = reach.left;
  }
  return plan;
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
