// How the threads of a tiled GEMM block fill its shared memory.
#pragma once

#include <waterweight/detail/gemm/tiled_fragments.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// One thread's part in copying [Rows, 64] elements, tile after tile along K, to the places that
/// `Places` names. Rows behind the last one are left as they are: what is computed from them is not
/// stored. Aligned: rows start on 16-byte boundaries, so the copies are asynchronous.
///
/// Tile 0 is the incomplete one, if there is any: the end of K, filled up with zeros. All others
/// are whole, so that nothing needs to be said about their size.
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
    cols_ = cols;
  }

  /// Copies tile `index` and turns to the next. `more`: there is one; else the copies to come do
  /// nothing.
  __device__ __forceinline__ void copy_first(int index, std::byte* tile, bool more) {
    const int after = index * kTiledBlockK;
    const int begin = index > 0 ? after - kTiledBlockK : (cols_ - 1) / kTiledBlockK * kTiledBlockK;
    const int vector = threadIdx.x % kRowVectors;
    const int count = min(max(cols_ - begin - vector * kElements, 0), kElements);
    // With nothing left the pointer must still be one that exists.
    const std::int64_t offset = count > 0 ? begin : -vector * kElements;
    source_ += offset;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) copy(i, tile, count);
    source_ += after - offset - kCopies * row_step_;
    if (!more) rows_left_ = 0;
  }

  /// Copy i of the tile at hand, one after the other; i is known to the compiler.
  __device__ __forceinline__ void copy(int i, std::byte* tile) { copy(i, tile, kElements); }

  /// On to the next tile, if there are more.
  __device__ __forceinline__ void advance(bool more) {
    source_ += kTiledBlockK - kCopies * row_step_;
    if (!more) rows_left_ = 0;
  }

 private:
  __device__ __forceinline__ void copy(int i, std::byte* tile, int count) {
    std::byte* const target = tile + Places::shift(place_, i * kRowStep);
    if constexpr (Aligned) {
      const int bytes = count * static_cast<int>(sizeof(Element));
      cp_async_16(target, source_, bytes, i * kRowStep < rows_left_);
    } else if (i * kRowStep < rows_left_) {
      alignas(16) Element buffer[kElements];
#pragma unroll
      for (int e = 0; e < kElements; ++e) buffer[e] = e < count ? source_[e] : Element{};
      *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(buffer);
    }
    source_ += row_step_;
  }

  const Element* source_;  ///< of the next copy
  std::int64_t row_step_;
  int place_, rows_left_, cols_;
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
