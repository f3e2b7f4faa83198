// How the threads of a tiled GEMM block fill its shared memory.
#pragma once

#include <waterweight/detail/gemm/tiled_fragments.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// One thread's part in copying [Rows, 64] elements, tile after tile along K, to the places that
/// `Places` names. Elements behind the end of a row become zero. Rows behind the last one are left
/// as they are: what is computed from them is not stored. Aligned: rows start on 16-byte
/// boundaries, so the copies are asynchronous.
template <class Places, class Element, int Rows, int Threads, bool Aligned>
class tile_copier {
  static constexpr int kElements = 16 / static_cast<int>(sizeof(Element));  ///< of a vector
  static constexpr int kRowVectors = kTiledBlockK / kElements;
  static constexpr int kRowStep = Threads / kRowVectors;

 public:
  static constexpr int kCopies = Rows / kRowStep;  ///< of a thread, for one tile
  static_assert(kCopies * kRowStep == Rows, "threads share the rows evenly");

  __device__ __forceinline__ tile_copier(const Element* data, std::int64_t ld, int rows, int cols,
                                         int row0)
      : row_step_(kRowStep * ld) {
    const int row = threadIdx.x / kRowVectors, vector = threadIdx.x % kRowVectors;
    source_ = data + (row0 + row) * ld + vector * kElements;
    place_ = Places::of(row, vector);
    rows_left_ = rows - row0 - row;
    left_ = cols - vector * kElements;
    count_left();
  }

  /// Copy i of the tile at hand, one after the other; i is known to the compiler.
  __device__ __forceinline__ void copy(int i, std::byte* tile) {
    std::byte* const target = tile + Places::shift(place_, i * kRowStep);
    const Element* const source = source_;
    source_ += row_step_;
    const bool present = i * kRowStep < rows_left_;
    if constexpr (Aligned) {
      cp_async_16(target, source, count_ * static_cast<int>(sizeof(Element)), present);
    } else if (present) {
      alignas(16) Element buffer[kElements];
#pragma unroll
      for (int e = 0; e < kElements; ++e) buffer[e] = e < count_ ? source[e] : Element{};
      *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(buffer);
    }
  }

  /// On to the next tile along K.
  __device__ __forceinline__ void advance() {
    source_ += kTiledBlockK - kCopies * row_step_;
    left_ -= kTiledBlockK;
    count_left();
  }

 private:
  __device__ __forceinline__ void count_left() { count_ = min(max(left_, 0), kElements); }

  const Element* source_;  ///< of the next copy
  std::int64_t row_step_;
  int place_, rows_left_;
  int left_;   ///< elements from this thread's place to the end of the row
  int count_;  ///< of them, those in this tile's vector
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
