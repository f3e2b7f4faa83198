// How stream_decode_kernel divides its warps and its shared memory.
#pragma once

#include <waterweight/detail/attention/cluster_decode_shape.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kStreamAttendWarps = 16;
inline constexpr int kStreamBookWarps = 4;  ///< one per split: no more of them
inline constexpr int kStreamBookThreads = 32 * kStreamBookWarps;
inline constexpr int kStreamHeads = 2;        ///< heads under way at a time
inline constexpr int kStreamPlaceChunks = 4;  ///< of keys or values in a place of the ring
inline constexpr int kStreamPlaceSlots = kStreamPlaceChunks * kChunkSlots;
inline constexpr int kStreamMaxChunks = kStreamBookWarps * kSplitChunks;
inline constexpr int kStreamWriters = 4;  ///< lanes of a warp that have what it finds out
/// Places that pass between two chunks of the same warp: of keys and of values.
inline constexpr int kStreamStride = 2 * kStreamAttendWarps / kStreamPlaceChunks;

/// Whether the kernel has code for a cache, and should take the step: beside other kernels, with
/// some heads for every block. It leaves SMs to them sooner than clusters do: a step of Pythia-2.8B
/// with the MLP beside the attention took on H200, 16 sequences, 512 heads, 2507 us with those and
/// 2298 with this, 64 sequences 4213 and 4104. Alone, clusters are faster: 25 us a layer and 27,
/// with 64 sequences 87 and 93.
template <int HeadDim>
inline constexpr bool kStreamsHeads = HeadDim >= 64 && HeadDim <= 128;
WATERWEIGHT_HOST_DEVICE constexpr bool stream_takes(int capacity, int group_size,
                                                    std::int64_t heads, int sms) {
  return cluster_splits(capacity) <= kStreamBookWarps && group_size == 1 && heads >= 2 * sms;
}

/// What is told of a head before its keys are multiplied.
struct stream_head_info {
  int step, live, fresh;
};

/// Shared memory of a block, for each of kStreamHeads heads but for the ring.
template <int HeadDim>
struct stream_decode_shape {
  using chunk = cluster_decode_shape<HeadDim>;
  static constexpr int kPrepareWarps = HeadDim / 32 + (HeadDim % 32 != 0);
  static constexpr int kFirstBook = 32 * kStreamAttendWarps;
  static constexpr int kFirstPrepare = kFirstBook + kStreamBookThreads;
  static constexpr int kProducer = kFirstPrepare + 32 * kPrepareWarps;
  static constexpr int kThreads = kProducer + 32;

  static constexpr int kPlaceBytes = kStreamPlaceChunks * chunk::kChunkBytes;
  // Offsets in bytes, all of them multiples of 16.
  static constexpr int kQuery = 0;
  static constexpr int kFresh = kQuery + kStreamHeads * 4 * HeadDim;  // key and value
  static constexpr int kP = kFresh + kStreamHeads * 2 * chunk::kRowBytes;
  static constexpr int kStats = kP + kStreamHeads * 4 * kStreamMaxChunks * kChunkSlots;
  static constexpr int kOutputs = kStats + kStreamHeads * 8 * kStreamMaxChunks;
  static constexpr int kRing = kOutputs + kStreamHeads * 4 * kStreamMaxChunks * HeadDim;
  /// What is static, and what the system keeps for itself, is less than 2 KiB.
  static constexpr int kPlaces = (225 * 1024 - kRing) / kPlaceBytes;
  /// See weight_ring: who waits for a place knows that the one before it in the same memory has
  /// landed.
  static constexpr int kInFlight = kPlaces - kStreamStride;
  static constexpr int kBytes = kRing + kPlaces * kPlaceBytes;
  static_assert(kInFlight >= 2, "room for a ring");
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
