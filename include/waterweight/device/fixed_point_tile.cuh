// One warp times four rows of INT8 weights in shared memory: the arithmetic of a decode kernel that
// streams its weights through a ring (weight_ring.cuh).
//
// The activations are three INT8 planes (fixed_point.cuh). A lane takes 16 consecutive elements of
// each row and of each plane at a time, and dp4a multiplies four of them. The integer tensor cores
// would have room for sixteen rows of activations where there are three planes: with mma.m16n8k32
// Pythia-2.8B took 901 us a token on an H200, with dp4a 871.
//
// The integer sums are exact, so whoever adds up parts of K gets the bits of the whole, and those
// of the device-wide GEMV for one token.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/device/fixed_point.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

inline constexpr int kTileRows = 4;

namespace detail {

/// Kept in the order of the program: loads of the next step are under way during this one.
__device__ __forceinline__ uint4 load_shared_in_order(std::uint32_t address) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}

/// sum plus the products of 16 bytes.
__device__ __forceinline__ int dot16(const uint4& a, const uint4& b, int sum) {
  sum = __dp4a(static_cast<int>(a.x), static_cast<int>(b.x), sum);
  sum = __dp4a(static_cast<int>(a.y), static_cast<int>(b.y), sum);
  sum = __dp4a(static_cast<int>(a.z), static_cast<int>(b.z), sum);
  return __dp4a(static_cast<int>(a.w), static_cast<int>(b.w), sum);
}

/// What a lane multiplies at a time.
struct tile_step {
  uint4 planes[kPlanes];
  uint4 rows[kTileRows];

  /// At `offset` of the planes and of the rows, if that is below k; otherwise zeros.
  __device__ __forceinline__ void load(std::uint32_t plane, int pitch, std::uint32_t row, int k,
                                       int offset) {
    const bool there = offset < k;
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
      planes[p] = make_uint4(0, 0, 0, 0);
      if (there) planes[p] = load_shared_in_order(plane + p * pitch + offset);
    }
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      rows[r] = make_uint4(0, 0, 0, 0);
      if (there) rows[r] = load_shared_in_order(row + r * k + offset);
    }
  }

  __device__ __forceinline__ void multiply(int (&sums)[kPlanes][kTileRows]) const {
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) sums[p][r] = dot16(planes[p], rows[r], sums[p][r]);
    }
  }
};

}  // namespace detail

/// Lane 4 * p + r, p < kPlanes, gets the sum of plane p with row r over k elements, k a multiple of
/// 16. tile: [4, k] weights; planes: kPlanes rows `pitch` bytes apart, from the tile's first k on.
/// Both are shared memory, all rows 16-byte aligned.
__device__ __forceinline__ int warp_tile_sums(const std::int8_t* tile, const std::int8_t* planes,
                                              int pitch, int k) {
  constexpr int kStep = 32 * 16;
  const int lane = threadIdx.x % 32;
  const std::uint32_t plane = detail::shared_address(planes), row = detail::shared_address(tile);
  int sums[kPlanes][kTileRows] = {};
  detail::tile_step even, odd;
  even.load(plane, pitch, row, k, 16 * lane);
#pragma unroll 1
  for (int at = 0; at < k; at += 2 * kStep) {
    const int mine = at + 16 * lane;
    odd.load(plane, pitch, row, k, mine + kStep);
    even.multiply(sums);
    if (at + kStep >= k) break;
    even.load(plane, pitch, row, k, mine + 2 * kStep);
    odd.multiply(sums);
  }
  int mine = 0;
#pragma unroll
  for (int p = 0; p < kPlanes; ++p) {
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      const int sum = __reduce_add_sync(0xffffffffu, sums[p][r]);
      if (lane == p * kTileRows + r) mine = sum;
    }
  }
  return mine;
}

/// From what warp_tile_sums() returned, lanes 0 to 3 get the value of their row.
__device__ __forceinline__ float warp_tile_value(int sum) {
  const int middle = __shfl_down_sync(0xffffffffu, sum, kTileRows);
  const int high = __shfl_down_sync(0xffffffffu, sum, 2 * kTileRows);
  return fixed_point_sum(sum, middle, high);
}

WATERWEIGHT_ARCH_NAMESPACE_END
