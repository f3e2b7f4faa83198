// Operands of the tiled GEMM in shared memory, and how warps read them as mma fragments: W is the
// A operand (m16), X the B operand (n8), so that Y^T comes out. A step of a warp is 32 elements of
// K, two mma deep.
//
// A tile is [rows, 64] elements. Its 16-byte vectors change places inside 128 bytes, so that
// neither the copies in nor the fragment loads out meet a bank conflict.
//
// A dot product does not care about the order of K as long as both operands agree, nor the mma
// about which row of W is which:
// - With INT8 weights lane q of a quad takes elements 8q .. 8q+7 of a step, which are four words of
//   two for X and, after conversion, for W: slots 2q, 2q+1, 2q+8, 2q+9 of both mma. One 16-byte
//   load is two whole B fragments.
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

inline constexpr int kTiledSteps = kTiledBlockK / 32;  ///< of a tile

/// X: rows of 128 bytes. Rows of eight lie in different vectors (ldmatrix), even and odd ones in
/// different halves (16-byte loads of four lanes per row).
struct x_places {
  static constexpr int kRowBytes = 128;
  __device__ static __forceinline__ int of(int row, int vector) {
    return row * kRowBytes + (vector ^ ((row & 1) * 4 + (row & 2) + (row >> 2 & 1))) * 16;
  }
  /// The place of the same vector `rows` further, a multiple of 8.
  __device__ static __forceinline__ int shift(int place, int rows) {
    return place + rows * kRowBytes;
  }
};

/// W: rows of 64 (INT8) or 128 bytes. Of rows `Own` apart, which make half a fragment, eight lie in
/// different vectors (ldmatrix) and four in different pairs of them (8-byte loads).
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
  __device__ static __forceinline__ int flip(int row) {
    return (row / Own & 3) * 32 + (row / Own >> 2 & 1) * 16;
  }
};

/// A fragments of a warp's 8 * Own rows of W.
template <class T, class Element, int Own>
class w_reader {
 public:
  static constexpr int kTiles = Own / 2;
  using fragments = std::uint32_t[2][kTiles][4];  ///< [mma along K][16 rows]
  /// What a lane reads for a step: word 2 i + k of row i. 16-bit weights are read as they are used.
  static constexpr int kWords = is_quantized_v<Element> ? 2 * Own : 1;
  using words = std::uint32_t[kWords];
  static constexpr int kParts = 2 * Own;  ///< in which a step's fragments are made from words
  /// What a sum of products with the fragments must be multiplied by.
  static constexpr float kUnit = is_quantized_v<Element> ? scaled_dequantizer<T>::kUnit : 1.0f;

  __device__ __forceinline__ explicit w_reader(int row0) {
    const int lane = threadIdx.x % 32;
    place_ = is_quantized_v<Element>
                 ? places::of(row0 + lane / 4 * Own, lane % 4 / 2) + lane % 2 * 8
                 : places::of(row0 + lane % 8 * Own + lane / 8 % 2, lane / 16);
  }

  /// Step `step` of the tile at `tile`: into `raw`, or, of 16-bit weights, into `a`.
  __device__ __forceinline__ void read(const std::byte* tile, int step, words& raw,
                                       fragments& a) const {
    if constexpr (is_quantized_v<Element>) {
#pragma unroll
      for (int i = 0; i < Own; ++i) {
        const std::byte* const from = tile + (place_ ^ (step * 32 + i % 2 * 64)) + i / 2 * 128;
        const uint2 two = *reinterpret_cast<const uint2*>(from);
        raw[2 * i] = two.x;
        raw[2 * i + 1] = two.y;
      }
    } else {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          ldmatrix_x4(a[k][t], tile + (place_ ^ (step * 64 + k * 32)) + t * 256);
        }
      }
    }
  }

  /// Makes part `part` of the fragments.
  __device__ static __forceinline__ void convert([[maybe_unused]] const words& raw,
                                                 [[maybe_unused]] int part,
                                                 [[maybe_unused]] fragments& a) {
    if constexpr (is_quantized_v<Element>) {
      const int t = part / 4, half = part / 2 % 2, k = part % 2;
      scaled_dequantizer<T>::four(raw[part], a[k][t][half], a[k][t][half + 2]);
    }
  }

 private:
  using places = w_places<Element, Own>;
  int place_;
};

/// B fragments of a warp's rows of X, `Tiles` times 8 of them at a time, in the order of K that
/// weights of Element ask for.
template <class Element, int Tiles>
class x_reader {
 public:
  using fragments = std::uint32_t[Tiles][4];  ///< two words for each mma along K

  __device__ __forceinline__ explicit x_reader(int row0) {
    const int lane = threadIdx.x % 32;
    place_ = is_quantized_v<Element> ? x_places::of(row0 + lane / 4, lane % 4)
                                     : x_places::of(row0 + lane % 8, lane / 8);
  }

  /// Group `group` of step `step` of the tile at `tile`.
  __device__ __forceinline__ void read(const std::byte* tile, int step, int group,
                                       fragments& b) const {
    const std::byte* const from =
        tile + (place_ ^ step * 64) + group * Tiles * 8 * x_places::kRowBytes;
#pragma unroll
    for (int j = 0; j < Tiles; ++j) {
      const std::byte* const rows = from + j * 8 * x_places::kRowBytes;
      if constexpr (is_quantized_v<Element>) {
        const uint4 four = *reinterpret_cast<const uint4*>(rows);
        b[j][0] = four.x;
        b[j][1] = four.y;
        b[j][2] = four.z;
        b[j][3] = four.w;
      } else {
        ldmatrix_x4(b[j], rows);
      }
    }
  }

 private:
  int place_;
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
