// Operands of the tiled GEMM in shared memory, and how warps read them as mma fragments: W is the
// A operand (m16), X the B operand (n8), so that Y^T comes out.
//
// A tile is [rows, 64] elements. Its 16-byte vectors change places inside 128 bytes, so that
// neither the copies in nor the fragment loads out meet a bank conflict.
//
// A dot product does not care about the order of K as long as both operands agree, nor the mma
// about which row of W is which:
// - INT8 weights are read for two mma along K at once: lane q of a quad owns elements 8q .. 8q+7 of
//   32, 8 bytes of W and 16 of X. Four of them stand for slots 2q, 2q+1, 2q+8, 2q+9 of an mma.
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

/// mma along K whose operands are read together: a round.
template <class Element>
inline constexpr int kTiledDepth = is_quantized_v<Element> ? 2 : 1;

/// X: rows of 128 bytes. Rows of eight lie in different vectors (ldmatrix), neighbours in different
/// halves of them (16-byte loads).
struct x_places {
  static constexpr int kRowBytes = 128;
  __device__ static __forceinline__ int of(int row, int vector) {
    return row * kRowBytes + (vector ^ ((row & 1) * 4 + (row >> 1 & 3))) * 16;
  }
  /// The place of the same vector `rows` further, a multiple of 8.
  __device__ static __forceinline__ int shift(int place, int rows) {
    return place + rows * kRowBytes;
  }
};

/// W: rows of 64 (INT8) or 128 bytes. Rows `Own` apart, eight of which make half a fragment, lie in
/// different vectors, any four neighbours of them in different pairs of vectors (8-byte loads).
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
    const int own = row / Own;
    return (own & 3) * 32 + (own >> 2 & 1) * 16;
  }
};

/// A fragments of a warp's 8 * Own rows of W.
template <class T, class Element, int Own>
class w_reader {
  static constexpr int kDepth = kTiledDepth<Element>;

 public:
  static constexpr int kTiles = Own / 2;
  using fragments = std::uint32_t[kDepth][kTiles][4];
  /// What a lane reads for a round: of INT8 row i the words [.][i]. 16-bit weights are read as they
  /// are used.
  using words = std::uint32_t[kDepth][Own];
  static constexpr int kParts = Own * kDepth;  ///< in which a round's fragments are made from words
  /// What a sum of products with the fragments must be multiplied by.
  static constexpr float kUnit = is_quantized_v<Element> ? scaled_dequantizer<T>::kUnit : 1.0f;

  __device__ __forceinline__ explicit w_reader(int row0) {
    const int lane = threadIdx.x % 32, matrix = lane / 8;
    place_ = is_quantized_v<Element> ? places::of(row0 + lane / 4 * Own, 0) ^ lane % 4 * 8
                                     : places::of(row0 + lane % 8 * Own + matrix % 2, matrix / 2);
  }

  /// Round `round` of the tile at `tile`: into `raw`, or, of 16-bit weights, into `a`.
  __device__ __forceinline__ void read(const std::byte* tile, int round, words& raw,
                                       fragments& a) const {
    const std::byte* const from = tile + (place_ ^ round * 32);
    if constexpr (is_quantized_v<Element>) {
      // The odd one of two neighbouring rows is where flipping that bit leads.
      const std::byte* const odd = tile + (place_ ^ (round * 32 + places::kRowBytes));
#pragma unroll
      for (int i = 0; i < Own; ++i) {
        const uint2 two = *reinterpret_cast<const uint2*>((i % 2 == 0 ? from : odd) +
                                                          i / 2 * 2 * places::kRowBytes);
        raw[0][i] = two.x;
        raw[1][i] = two.y;
      }
    } else {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) ldmatrix_x4(a[0][t], from + 2 * t * places::kRowBytes);
    }
  }

  /// Makes part `part` of the fragments.
  __device__ static __forceinline__ void convert([[maybe_unused]] const words& raw,
                                                 [[maybe_unused]] int part,
                                                 [[maybe_unused]] fragments& a) {
    if constexpr (is_quantized_v<Element>) {
      const int h = part / Own, i = part % Own;
      auto& fragment = a[h][i / 2];
      scaled_dequantizer<T>::four(raw[h][i], fragment[i % 2], fragment[i % 2 + 2]);
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
  using fragments = std::uint32_t[kTiledDepth<Element>][kTiles][2];

  __device__ __forceinline__ explicit x_reader(int row0) {
    const int lane = threadIdx.x % 32;
    place_ = is_quantized_v<Element> ? x_places::of(row0 + lane / 4, lane % 4)
                                     : x_places::of(row0 + lane / 16 * 8 + lane % 8, lane / 8 % 2);
  }

  __device__ __forceinline__ void read(const std::byte* tile, int round, int group,
                                       fragments& b) const {
    const std::byte* const from = tile + (place_ ^ round * kTiledDepth<Element> * 32) +
                                  group * kTiles * 8 * x_places::kRowBytes;
    if constexpr (is_quantized_v<Element>) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const uint4 four = *reinterpret_cast<const uint4*>(from + j * 8 * x_places::kRowBytes);
        b[0][j][0] = four.x;
        b[0][j][1] = four.y;
        b[1][j][0] = four.z;
        b[1][j][1] = four.w;
      }
    } else {
      std::uint32_t four[4];
      ldmatrix_x4(four, from);
#pragma unroll
      for (int r = 0; r < 4; ++r) b[0][r / 2][r % 2] = four[r];
    }
  }

 private:
  int place_;
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
