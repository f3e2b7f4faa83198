// Operands of the tiled GEMM in shared memory, and how warps read them as mma fragments: W is the
// A operand (m16), X the B operand (n8), so that Y^T comes out.
//
// A tile is [rows, 64] elements. Its 16-byte vectors change places inside 128 bytes, so that
// neither the copies in nor the fragment loads out meet a bank conflict.
//
// A dot product does not care about the order of K as long as both operands agree, nor the mma
// about which row of W is which:
// - ldmatrix gives lane q of a quad bytes 4q .. 4q+3 of each 16. Of INT8 weights these are four
//   elements of K: they stand for slots 2q, 2q+1, 2q+8, 2q+9 of the mma. The same elements of X
//   are one 8-byte load, a whole B fragment.
// - A warp's rows of W are dealt out so that rows g and g + 8 of all its fragments are neighbours:
//   a lane then owns neighbouring columns of Y.
#pragma once

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/detail/gemm/policy.cuh>
#include <waterweight/detail/gemm/weights.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kTiledSteps = kTiledBlockK / 16;  ///< mma along K for one tile

/// X: rows of 128 bytes. Rows of eight lie in different vectors (ldmatrix), rows of four in
/// different pairs of them (8-byte loads).
struct x_places {
  static constexpr int kRowBytes = 128;
  __device__ static __forceinline__ int of(int row, int vector) {
    return row * kRowBytes + (vector ^ ((row & 3) * 2 + (row >> 2 & 1))) * 16;
  }
  /// The place of the same vector `rows` further, a multiple of 8.
  __device__ static __forceinline__ int shift(int place, int rows) {
    return place + rows * kRowBytes;
  }
};

/// W: rows of 64 (INT8) or 128 bytes. Rows `Own` apart, eight of which make half a fragment, lie in
/// different vectors.
template <class Element, int Own>
struct w_places {
  static constexpr int kRowBytes = kTiledBlockK * static_cast<int>(sizeof(Element));
  __device__ static __forceinline__ int of(int row, int vector) {
    return (row * kRowBytes + vector * 16) ^ flip(row);
  }
  /// The place of the same vector `rows` further: a multiple of a power of two above the row of
  /// `place`.
  __device__ static __forceinline__ int shift(int place, int rows) {
    return (place ^ flip(rows)) + rows * kRowBytes;
  }

 private:
  __device__ static __forceinline__ int flip(int row) { return (row / Own & 7) * 16; }
};

/// A fragments of a warp's 8 * Own rows of W.
template <class T, class Element, int Own>
class w_reader {
 public:
  static constexpr int kTiles = Own / 2;
  using fragments = std::uint32_t[kTiles][4];
  /// What a lane reads for a step: word i of INT8 row i. 16-bit weights are read as they are used.
  using words = std::uint32_t[Own];
  static constexpr int kParts = Own;  ///< in which a step's fragments are made from words
  /// What a sum of products with the fragments must be multiplied by.
  static constexpr float kUnit = is_quantized_v<Element> ? scaled_dequantizer<T>::kUnit : 1.0f;

  __device__ __forceinline__ explicit w_reader(int row0) {
    const int lane = threadIdx.x % 32, matrix = lane / 8, row = row0 + lane % 8 * Own;
    place_ = is_quantized_v<Element> ? places::of(row + matrix, 0)
                                     : places::of(row + matrix % 2, matrix / 2);
  }

  /// Step `step` of the tile at `tile`: into `raw`, or, of 16-bit weights, into `a`.
  __device__ __forceinline__ void read(const std::byte* tile, int step, words& raw,
                                       fragments& a) const {
    if constexpr (is_quantized_v<Element>) {
      const std::byte* const from = tile + (place_ ^ step * 16);
#pragma unroll
      for (int i = 0; i < Own; i += 4) {
        std::uint32_t four[4];
        ldmatrix_x4(four, from + i * places::kRowBytes);
#pragma unroll
        for (int r = 0; r < 4; ++r) raw[i + r] = four[r];
      }
    } else {
      const std::byte* const from = tile + (place_ ^ step * 32);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) ldmatrix_x4(a[t], from + 2 * t * places::kRowBytes);
    }
  }

  /// Makes part `part` of the fragments.
  __device__ static __forceinline__ void convert([[maybe_unused]] const words& raw,
                                                 [[maybe_unused]] int part,
                                                 [[maybe_unused]] fragments& a) {
    if constexpr (is_quantized_v<Element>) {
      const int t = part / 2, half = part % 2;
      scaled_dequantizer<T>::four(raw[part], a[t][half], a[t][half + 2]);
    }
  }

 private:
  using places = w_places<Element, Own>;
  int place_;
};

/// B fragments of a warp's rows of X, in the order of K that weights of Element ask for.
template <class Element>
class x_reader {
 public:
  static constexpr int kTiles = 2;  ///< whose fragments are read together: a group
  using fragments = std::uint32_t[kTiles][2];

  __device__ __forceinline__ explicit x_reader(int row0) {
    const int lane = threadIdx.x % 32, quad = lane % 4;
    place_ = is_quantized_v<Element> ? x_places::of(row0 + lane / 4, quad / 2) + quad % 2 * 8
                                     : x_places::of(row0 + lane / 16 * 8 + lane % 8, lane / 8 % 2);
  }

  __device__ __forceinline__ void read(const std::byte* tile, int step, int group,
                                       fragments& b) const {
    const std::byte* const from =
        tile + (place_ ^ step * 32) + group * kTiles * 8 * x_places::kRowBytes;
    if constexpr (is_quantized_v<Element>) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const uint2 two = *reinterpret_cast<const uint2*>(from + j * 8 * x_places::kRowBytes);
        b[j][0] = two.x;
        b[j][1] = two.y;
      }
    } else {
      std::uint32_t four[4];
      ldmatrix_x4(four, from);
#pragma unroll
      for (int r = 0; r < 4; ++r) b[r / 2][r % 2] = four[r];
    }
  }

 private:
  int place_;
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
