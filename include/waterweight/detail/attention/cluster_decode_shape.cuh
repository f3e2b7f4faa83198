// How cluster_decode_kernel divides a head, and where its blocks keep what.
#pragma once

#include <cstddef>
#include <cstdint>

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/attention/decode_chunk.cuh>
#include <waterweight/device/h2o_evict.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kSplitChunks = 8;  ///< of a block
inline constexpr int kSplitSlots = kSplitChunks * kChunkSlots;
inline constexpr int kMaxClusterSplits = 8;  ///< the portable cluster size
/// Threads that evict where several keys leave at once.
inline constexpr int kClusterEvictThreads = 128;

/// Whether the kernel takes the cache, and into how many blocks it divides a head: a function of
/// the cache alone, as in decode_splits.
WATERWEIGHT_HOST_DEVICE constexpr int cluster_splits(int capacity) {
  const int needed = (capacity + kSplitSlots - 1) / kSplitSlots;
  return needed < 2 ? 2 : needed;  // a cluster
}
WATERWEIGHT_HOST_DEVICE constexpr bool cluster_takes(int capacity, int group_size) {
  return cluster_splits(capacity) <= kMaxClusterSplits && group_size <= kChunkHeads;
}

/// What is known of a chunk before the others are: its softmax by itself, of one query head.
struct chunk_stat {
  float maximum, sum;
};

/// Shared memory of a block, 128-byte aligned: copies to 16 bytes beyond a multiple of 32 take a
/// tenth longer. Elements are of 2 bytes.
template <int HeadDim>
struct cluster_decode_shape {
  static constexpr int kRowBytes = 2 * HeadDim;
  /// Rows a multiple of 64 bytes apart would all lie in few banks.
  static constexpr int kPitch = kRowBytes + (kRowBytes % 64 == 0 ? 16 : 0);
  static constexpr int kChunkBytes = kChunkSlots * kPitch;

  int group_size, splits, capacity, evict_every;

  // Offsets in bytes, all of them multiples of 16.
  WATERWEIGHT_HOST_DEVICE constexpr int keys() const { return 0; }
  WATERWEIGHT_HOST_DEVICE constexpr int values() const { return kSplitChunks * kChunkBytes; }
  WATERWEIGHT_HOST_DEVICE constexpr int fresh() const {  // this token's key and value
    return values() + kSplitChunks * kChunkBytes;
  }
  WATERWEIGHT_HOST_DEVICE constexpr int query() const { return fresh() + 2 * kRowBytes; }
  /// The block's own: [group_size, kSplitSlots] exponentials, [group_size, kSplitChunks] maxima.
  WATERWEIGHT_HOST_DEVICE constexpr int p() const { return query() + 4 * HeadDim * group_size; }
  WATERWEIGHT_HOST_DEVICE constexpr int maxima() const {
    return p() + 4 * kSplitSlots * group_size;
  }
  /// Of all blocks: [group_size, splits * kSplitChunks] chunk_stat.
  WATERWEIGHT_HOST_DEVICE constexpr int stats() const {
    return maxima() + 4 * kSplitChunks * group_size;
  }
  /// What the merging block makes and receives: [group_size, splits] weights, [splits] candidates'
  /// keys, [splits] their slots, [splits, group_size, HeadDim] outputs.
  WATERWEIGHT_HOST_DEVICE constexpr int weights() const {
    return stats() + 8 * kSplitChunks * splits * group_size;
  }
  WATERWEIGHT_HOST_DEVICE constexpr int candidate_keys() const {
    return weights() + (4 * splits * group_size + 15) / 16 * 16;
  }
  WATERWEIGHT_HOST_DEVICE constexpr int candidate_slots() const {
    return candidate_keys() + 8 * kMaxClusterSplits;
  }
  WATERWEIGHT_HOST_DEVICE constexpr int sums() const {
    return candidate_slots() + 4 * kMaxClusterSplits;
  }
  WATERWEIGHT_HOST_DEVICE constexpr int bytes() const {
    const int step = sums() + 4 * HeadDim * group_size * splits;
    // Eviction of several needs room when everything else has been read.
    const int evict = static_cast<int>(h2o_evict_shared_bytes<kClusterEvictThreads>(evict_every));
    return step > evict ? step : evict;
  }
  /// A chunk's outputs, [group_size, HeadDim], take the place of its keys.
  static_assert(4 * kChunkHeads * HeadDim <= kChunkBytes, "outputs fit");
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// One warp asks for rows [first, first + rows) of a head into rows `first`... of a tile.
template <int RowBytes, int Pitch>
__device__ __forceinline__ void bulk_copy_rows(std::byte* tile, const void* head, int first,
                                               int rows, std::uint64_t* barrier) {
  const auto* source = static_cast<const std::byte*>(head) + std::int64_t{first} * RowBytes;
  const int lane = threadIdx.x % 32;
  if (lane == 0) mbarrier_arrive_expect(barrier, static_cast<std::uint32_t>(rows * RowBytes));
  if constexpr (Pitch == RowBytes) {
    if (lane == 0 && rows > 0) bulk_copy(tile + first * Pitch, source, rows * RowBytes, barrier);
  } else {
    __syncwarp();  // the bytes are expected before they arrive
    for (int row = lane; row < rows; row += 32) {
      bulk_copy(tile + (first + row) * Pitch, source + row * RowBytes, RowBytes, barrier);
    }
  }
}

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
