// One warp times two rows of 16-bit weights: the arithmetic of a decode kernel that streams its
// weights through a ring (weight_ring.cuh), for one token. As in fixed_point_tile.cuh a tile is
// taken into registers before it is multiplied.
//
// mma.m16n8k16 takes the weights as A and the activations as B. K is cut into pieces of 32: the
// rows of A are the two rows of weights times eight pieces, the columns of B the same eight pieces
// of the activations, and of the products only those of equal pieces are used. A lane so loads 16
// consecutive bytes of either operand, a warp 512 of them. Elements of K change places within
// these bytes, in both operands alike.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/device/fixed_point_tile.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

inline constexpr int kHalfTileRows = 2;
inline constexpr int kHalfTileChunk = 256;  ///< K is a multiple of this

/// A tile of two rows of K 16-bit weights, a multiple of kHalfTileChunk, in the registers of a
/// warp. T: __half or __nv_bfloat16.
template <class T, int K>
class warp_half_tile {
 public:
  /// From [2, K] in shared memory, 16-byte aligned.
  __device__ __forceinline__ explicit warp_half_tile(const T* tile) {
    const std::uint32_t first = detail::shared_address(tile) + 16 * (threadIdx.x % 32);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int row = 0; row < kHalfTileRows; ++row) {
        words_[i][row] = detail::load_shared_in_order(
            first + row * K * static_cast<int>(sizeof(T)) + kStepBytes * i);
      }
    }
  }

  /// Made of all that this lane has loaded: for detail::after_loading().
  __device__ __forceinline__ std::uint32_t loaded() const {
    std::uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) word ^= words_[i][0].x ^ words_[i][1].x;
    return word;
  }

  /// Lane r < kHalfTileRows gets the sum of row r with x over K elements, in fp32, always added in
  /// the same order. x: [K] in shared memory, 16-byte aligned.
  __device__ __forceinline__ float sum(const T* x) const {
    constexpr int kAhead = kSteps < 3 ? kSteps : 3;
    const int lane = threadIdx.x % 32, piece = lane / 4;
    const std::uint32_t activations = detail::shared_address(x) + 16 * lane;
    uint4 ahead[kAhead];
    float sums[2][4] = {};
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      ahead[i] = detail::load_shared_in_order(activations + kStepBytes * i);
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const uint4 u = words_[i][0], v = words_[i][1], w = ahead[i % kAhead];
      if (i + kAhead < kSteps) {
        ahead[i % kAhead] = detail::load_shared_in_order(activations + kStepBytes * (i + kAhead));
      }
      const std::uint32_t low[4] = {u.x, v.x, u.y, v.y}, high[4] = {u.z, v.z, u.w, v.w};
      detail::mma_m16n8k16<T>(sums[0], low, w.x, w.y);
      detail::mma_m16n8k16<T>(sums[1], high, w.z, w.w);
    }
    // Of each row the product of piece p with itself lies in lane 4 * p + p / 2. Lanes whose pieces
    // differ in one bit exchange what they have; of the first two each goes on with one row.
    const bool odd = piece % 2 != 0;
    const float row0 = odd ? sums[0][1] + sums[1][1] : sums[0][0] + sums[1][0];
    const float row1 = odd ? sums[0][3] + sums[1][3] : sums[0][2] + sums[1][2];
    float sum = (odd ? row1 : row0) + __shfl_xor_sync(0xffffffffu, odd ? row0 : row1, 4);
    sum += __shfl_xor_sync(0xffffffffu, sum, 8 + 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 16 + 2);
    return __shfl_sync(0xffffffffu, sum, lane % kHalfTileRows * 4);
  }

 private:
  static constexpr int kSteps = K / kHalfTileChunk;
  static constexpr int kStepBytes = kHalfTileChunk * static_cast<int>(sizeof(T));
  static_assert(K % kHalfTileChunk == 0 && kSteps > 0);

  uint4 words_[kSteps][kHalfTileRows];
};

WATERWEIGHT_ARCH_NAMESPACE_END
