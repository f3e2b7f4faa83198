// One warp times four rows of INT8 weights in shared memory: the integer tensor cores' part of a
// decode kernel that streams its weights through a ring (weight_ring.cuh).
//
// The activations are three INT8 planes (fixed_point.cuh), the arithmetic is that of the device-wide
// GEMV for one token: eight columns of mma.m16n8k32 are four rows times two halves of 128 bytes of
// K, its rows the planes for either half. The integer sums are exact, so whoever adds up parts of K
// gets the bits of the whole.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/device/fixed_point.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

inline constexpr int kTileRows = 4;
inline constexpr int kTileChunk = 128;  ///< K is a multiple of this

/// Bytes from plane to plane: planes of equal k then lie in different banks.
WATERWEIGHT_HOST_DEVICE constexpr int tile_plane_pitch(int k) { return k + 64; }

namespace detail {

__device__ __forceinline__ void mma_m16n8k32_planes(int (&c)[4], std::uint32_t a0, std::uint32_t a2,
                                                    std::uint32_t b0, std::uint32_t b1) {
  // Rows 8 and up of A, its second and fourth registers, stay empty.
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(0), "r"(a2), "r"(0), "r"(b0), "r"(b1));
}

}  // namespace detail

/// Lanes 4 * p + r with p < kPlanes get the sum of plane p with row r over k elements.
/// tile: [4, k] weights, planes: [kPlanes] of pitch `pitch`, starting at the tile's first k; both
/// 16-byte aligned shared memory.
__device__ __forceinline__ int warp_tile_sums(const std::int8_t* tile, const std::int8_t* planes,
                                              int pitch, int k) {
  const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  // Groups 6 and 7 have no plane: what they read ends in sums that nobody looks at.
  const int plane_group = group < 2 * kPlanes ? group : group - 2;
  const std::int8_t* a =
      planes + plane_group % kPlanes * pitch + plane_group / kPlanes * 64 + quad * 16;
  const std::int8_t* w = tile + group / 2 * k + group % 2 * 64 + quad * 16;
  int even[4] = {}, odd[4] = {};
#pragma unroll 4
  for (int at = 0; at < k; at += kTileChunk) {
    const uint4 x = *reinterpret_cast<const uint4*>(a + at);
    const uint4 q = *reinterpret_cast<const uint4*>(w + at);
    detail::mma_m16n8k32_planes(even, x.x, x.y, q.x, q.y);
    detail::mma_m16n8k32_planes(odd, x.z, x.w, q.z, q.w);
  }
  // Column 2 * quad + half is row `quad` at that half.
  const int mine = group < kPlanes ? even[0] + odd[0] : even[1] + odd[1];
  return mine + __shfl_down_sync(0xffffffffu, mine, 4 * kPlanes);
}

/// From what warp_tile_sums() returned, lanes 0 to 3 get the value of their row.
__device__ __forceinline__ float warp_tile_value(int sum) {
  const int middle = __shfl_down_sync(0xffffffffu, sum, 4);
  const int high = __shfl_down_sync(0xffffffffu, sum, 8);
  return fixed_point_sum(sum, middle, high);
}

WATERWEIGHT_ARCH_NAMESPACE_END
