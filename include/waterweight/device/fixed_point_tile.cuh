// One warp times four rows of INT8 weights in shared memory: the arithmetic of a decode kernel that
// streams its weights through a ring (weight_ring.cuh).
//
// The activations are three INT8 planes (fixed_point.cuh). mma.m16n8k32 takes the planes as rows of
// A and the weights as columns of B; the eight columns are four rows of weights times two halves of
// 128 bytes of K, the first eight rows of A the planes (and an idle one) times the same halves, and
// of the products only those of equal halves are used. A lane so loads 16 consecutive bytes of
// either operand, and no two lanes the same bank. Elements of K change places within these bytes,
// in both operands alike.
//
// The integer sums are exact, so whoever adds up parts of K gets the bits of the whole, and those
// of the device-wide GEMV for one token.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/device/fixed_point.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

inline constexpr int kTileRows = 4;
inline constexpr int kTileChunk = 128;  ///< K is a multiple of this

namespace detail {

/// Kept in the order of the program: loads of several steps are under way during one.
__device__ __forceinline__ uint4 load_shared_in_order(std::uint32_t address) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}

/// c += A B where only rows 0 to 7 of A are not zero.
__device__ __forceinline__ void mma_m8n8k32_s8(int (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                               std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(0), "r"(a1), "r"(0), "r"(b0), "r"(b1));
}

}  // namespace detail

/// The lane that has what warp_tile_sums() says of plane p and row r.
WATERWEIGHT_HOST_DEVICE constexpr int tile_sum_lane(int p, int r) { return 8 * p + r; }

/// Lane tile_sum_lane(p, r) gets the sum of plane p with row r over K elements, a multiple of
/// kTileChunk. tile: [4, K] weights; planes: kPlanes rows `pitch` bytes apart, from the tile's
/// first k on. Both are shared memory, all rows 16-byte aligned.
template <int K>
__device__ __forceinline__ int warp_tile_sums(const std::int8_t* tile, const std::int8_t* planes,
                                              int pitch) {
  constexpr int kSteps = K / kTileChunk, kAhead = kSteps < 4 ? kSteps : 4, kChains = 4;
  static_assert(K % kTileChunk == 0 && kSteps > 0);
  const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int place = group % 2 * (kTileChunk / 2) + 16 * quad;
  // The idle rows of A repeat a plane: nobody looks at their sums.
  const int p = group / 2 < kPlanes ? group / 2 : 0;
  const std::uint32_t plane = detail::shared_address(planes) + p * pitch + place;
  const std::uint32_t row = detail::shared_address(tile) + group / 2 * K + place;
  uint4 x[kAhead], w[kAhead];
  int sums[kChains][4] = {};
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    x[i] = detail::load_shared_in_order(plane + kTileChunk * i);
    w[i] = detail::load_shared_in_order(row + kTileChunk * i);
  }
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const uint4 a = x[i % kAhead], b = w[i % kAhead];
    if (i + kAhead < kSteps) {
      x[i % kAhead] = detail::load_shared_in_order(plane + kTileChunk * (i + kAhead));
      w[i % kAhead] = detail::load_shared_in_order(row + kTileChunk * (i + kAhead));
    }
    detail::mma_m8n8k32_s8(sums[2 * i % kChains], a.x, a.y, b.x, b.y);
    detail::mma_m8n8k32_s8(sums[(2 * i + 1) % kChains], a.z, a.w, b.z, b.w);
  }
  // Row of A: 2 * plane + half, column of B: 2 * row + half.
  int even = 0, odd = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) {
    even += sums[i][0];
    odd += sums[i][1];
  }
  const int mine = group % 2 == 0 ? even : odd;
  return mine + __shfl_xor_sync(0xffffffffu, mine, 4);
}

/// From what warp_tile_sums() returned, lanes 0 to 3 get the value of their row.
__device__ __forceinline__ float warp_tile_value(int sum) {
  const int middle = __shfl_down_sync(0xffffffffu, sum, tile_sum_lane(1, 0));
  const int high = __shfl_down_sync(0xffffffffu, sum, tile_sum_lane(2, 0));
  return fixed_point_sum(sum, middle, high);
}

WATERWEIGHT_ARCH_NAMESPACE_END
