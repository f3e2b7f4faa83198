// One warp times four rows of INT8 weights in shared memory: the integer tensor cores' part of a
// decode kernel that streams its weights through a ring (weight_ring.cuh).
//
// The activations are three INT8 planes (fixed_point.cuh), the arithmetic is that of the
// device-wide GEMV for one token: the eight columns of mma.m16n8k32 are four rows times two halves
// of 128 bytes of K, its rows the planes for either half; of the products only those of equal
// halves are used. Sixteen rows of A have room for twice the planes: rows 0 to 7 hold the first 8
// of 16 consecutive elements, rows 8 to 15 the others, and of either of two mma half the rows are
// used. So both operands are loaded 16 bytes at a time into the very registers that mma takes,
// given that the planes' words lie in the order that plane_place() says.
//
// The integer sums are exact, so whoever adds up parts of K gets the bits of the whole.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/device/fixed_point.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

inline constexpr int kTileRows = 4;
inline constexpr int kTileChunk = 128;  ///< K is a multiple of this

/// Bytes from plane to plane: planes of equal k then lie in different banks.
WATERWEIGHT_HOST_DEVICE constexpr int tile_plane_pitch(int k) { return k + 64; }

/// Where element k of a plane lies: the second and third of four words change places.
WATERWEIGHT_HOST_DEVICE constexpr int plane_place(int k) {
  return (k & ~12) | (k & 4) << 1 | (k & 8) >> 1;
}

namespace detail {

__device__ __forceinline__ void mma_m16n8k32_s8(int (&c)[4], const uint4& a, std::uint32_t b0,
                                                std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

/// Kept in the order of the program: loads of several steps ahead are under way together.
__device__ __forceinline__ uint4 load_shared_in_order(std::uint32_t address) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}

}  // namespace detail

/// Lanes 4 * p + r with p < kPlanes get the sum of plane p with row r over k elements.
/// tile: [4, k] weights, planes: [kPlanes] of pitch `pitch`, starting at the tile's first k; both
/// 16-byte aligned shared memory.
__device__ __forceinline__ int warp_tile_sums(const std::int8_t* tile, const std::int8_t* planes,
                                              int pitch, int k) {
  constexpr int kAhead = 4;
  const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  // Groups 6 and 7 have no plane: what they read ends in sums that nobody looks at.
  const int plane_group = group < 2 * kPlanes ? group : group - 2;
  const std::uint32_t a = detail::shared_address(planes + plane_group % kPlanes * pitch +
                                                 plane_group / kPlanes * 64 + quad * 16);
  const std::uint32_t w = detail::shared_address(tile + group / 2 * k + group % 2 * 64 + quad * 16);
  uint4 x[kAhead], q[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int at = i * kTileChunk < k ? i * kTileChunk : 0;
    x[i] = detail::load_shared_in_order(a + at);
    q[i] = detail::load_shared_in_order(w + at);
  }
  int first[2][4] = {}, second[2][4] = {};
  for (int at = 0; at < k; at += kAhead * kTileChunk) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (at + i * kTileChunk >= k) break;
      detail::mma_m16n8k32_s8(first[i % 2], x[i], q[i].x, q[i].y);
      detail::mma_m16n8k32_s8(second[i % 2], x[i], q[i].z, q[i].w);
      const int next = at + (i + kAhead) * kTileChunk;
      if (next < k) {
        x[i] = detail::load_shared_in_order(a + next);
        q[i] = detail::load_shared_in_order(w + next);
      }
    }
  }
  // Column 2 * quad + half is row `quad` at that half.
  const int half = group < kPlanes ? 0 : 1;
  const int mine = half == 0 ? first[0][0] + first[1][0] + second[0][2] + second[1][2]
                             : first[0][1] + first[1][1] + second[0][3] + second[1][3];
  return mine + __shfl_down_sync(0xffffffffu, mine, 4 * kPlanes);
}

/// From what warp_tile_sums() returned, lanes 0 to 3 get the value of their row.
__device__ __forceinline__ float warp_tile_value(int sum) {
  const int middle = __shfl_down_sync(0xffffffffu, sum, 4);
  const int high = __shfl_down_sync(0xffffffffu, sum, 8);
  return fixed_point_sum(sum, middle, high);
}

WATERWEIGHT_ARCH_NAMESPACE_END
