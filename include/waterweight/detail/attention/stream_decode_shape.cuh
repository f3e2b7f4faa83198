// How stream_decode_kernel divides its warps and its shared memory.
#pragma once

#include <waterweight/detail/attention/cluster_decode_shape.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kStreamAttendWarps = 16;
inline constexpr int kStreamBookWarps = 4;  ///< one per split: no more of them
inline constexpr int kStreamBookThreads = 32 * kStreamBookWarps;
inline constexpr int kStreamMaxChunks = kStreamBookWarps * kSplitChunks;
inline constexpr int kStreamWriters = 4;  ///< lanes of a warp that have what it finds out
/// Whether the kernel has code for a cache, and should take the step: beside other kernels, with
/// some heads for every block. It leaves SMs to them sooner than clusters do: a step of Pythia-2.8B
/// with 64 sequences, the MLP beside the attention, took 4209 us on H200 with those and 3924 with
/// this. Alone, they are as fast: 88 us a layer.
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

/// Shared memory of a block, for each of kHeads heads but for the ring. With places of 40 KiB and
/// three heads under way, heads handed out as blocks ask for them, a step of Pythia-2.8B with 64
/// sequences takes 3949 us on H200, with places of 20 KiB and four heads 4016 (120 KiB asked for at
/// a time), 4046 (80) and 4046 (60), of 10 KiB 4185 (70) and 4503 (40).
template <int HeadDim>
struct stream_decode_shape {
  using chunk = cluster_decode_shape<HeadDim>;
  static constexpr int kPrepareWarps = HeadDim / 32 + (HeadDim % 32 != 0);
  static constexpr int kFirstBook = 32 * kStreamAttendWarps;
  static constexpr int kFirstPrepare = kFirstBook + kStreamBookThreads;
  static constexpr int kProducer = kFirstPrepare + 32 * kPrepareWarps;
  static constexpr int kThreads = kProducer + 32;

  static constexpr int kHeads = HeadDim <= 80 ? 3 : 2;         ///< under way at a time
  static constexpr int kPlaceChunks = HeadDim <= 80 ? 16 : 4;  ///< of keys or of values
  static constexpr int kPlaceSlots = kPlaceChunks * kChunkSlots;
  /// Places that pass between two chunks of the same warp: of keys and of values.
  static constexpr int kStride = 2 * kStreamAttendWarps / kPlaceChunks;
  /// Rows lie as far from a multiple of 128 bytes as they do in the cache.
  static constexpr int kPlaceAlignment = 128;
  static constexpr int kPlaceBytes = kPlaceChunks * chunk::kChunkBytes + kPlaceAlignment;
  // Offsets in bytes, all of them multiples of 16.
  static constexpr int kQuery = 0;
  static constexpr int kFresh = kQuery + kHeads * 4 * HeadDim;  // key and value
  static constexpr int kP = kFresh + kHeads * 2 * chunk::kRowBytes;
  static constexpr int kStats = kP + kHeads * 4 * kStreamMaxChunks * kChunkSlots;
  static constexpr int kOutputs = kStats + kHeads * 8 * kStreamMaxChunks;
  static constexpr int kEnd = kOutputs + kHeads * 4 * kStreamMaxChunks * HeadDim;
  static constexpr int kRing = (kEnd + kPlaceAlignment - 1) / kPlaceAlignment * kPlaceAlignment;
  /// What is static, and what the system keeps for itself, is less than 2 KiB.
  static constexpr int kPlaces = (225 * 1024 - kRing) / kPlaceBytes;
  /// See weight_ring: who waits for a place knows that the one before it in the same memory has
  /// landed.
  static constexpr int kInFlight = kPlaces - kStride;
  static constexpr int kBytes = kRing + kPlaces * kPlaceBytes;
  static_assert(kInFlight >= 2, "room for a ring");
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
