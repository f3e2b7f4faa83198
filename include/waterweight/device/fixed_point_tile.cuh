// One warp times four rows of INT8 weights: the arithmetic of a decode kernel that streams its
// weights through a ring (weight_ring.cuh). The weights are taken into registers, all of a tile,
// so that its place in the ring is free before the activations are there.
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

#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/device/fixed_point.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

inline constexpr int kTileRows = 4;
inline constexpr int kTileChunk = 128;  ///< K is a multiple of this

namespace detail {

/// load_shared_in_order() for some lanes only; others keep what they have, and cost no bandwidth.
__device__ __forceinline__ void load_shared_in_order_if(bool wanted, std::uint32_t address,
                                                        uint4* value) {
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.b32 wanted, %5, 0;\n"
      "@wanted ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n"
      "}\n"
      : "+r"(value->x), "+r"(value->y), "+r"(value->z), "+r"(value->w)
      : "r"(address), "r"(static_cast<int>(wanted))
      : "memory");
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

/// The lane that has what warp_tile::sums() says of plane p and row r.
WATERWEIGHT_HOST_DEVICE constexpr int tile_sum_lane(int p, int r) { return 8 * p + r; }

/// A tile of four rows of K INT8 weights, a multiple of kTileChunk, in the registers of a warp.
template <int K>
class warp_tile {
 public:
  /// From [4, K] in shared memory, 16-byte aligned.
  __device__ __forceinline__ explicit warp_tile(const std::int8_t* tile) {
    const int lane = threadIdx.x % 32;
    const std::uint32_t row = detail::shared_address(tile) + lane / 8 * K + place(lane);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      words_[i] = detail::load_shared_in_order(row + kTileChunk * i);
    }
  }

  /// Made of all that this lane has loaded: for detail::after_loading().
  __device__ __forceinline__ std::uint32_t loaded() const {
    std::uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) word ^= words_[i].x;
    return word;
  }

  /// Lane tile_sum_lane(p, r) gets the sum of plane p with row r. planes: kPlanes rows `pitch`
  /// bytes apart in shared memory, 16-byte aligned, from the tile's first k on.
  __device__ __forceinline__ int sums(const std::int8_t* planes, int pitch) const {
    constexpr int kAhead = kSteps < 4 ? kSteps : 4, kChains = 2;
    const int lane = threadIdx.x % 32, group = lane / 4;
    // Nobody looks at the sums of the idle rows of A.
    const bool used = group / 2 < kPlanes;
    const std::uint32_t plane =
        detail::shared_address(planes) + (used ? group / 2 : 0) * pitch + place(lane);
    uint4 x[kAhead] = {};
    int sums[kChains][4] = {};
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      detail::load_shared_in_order_if(used, plane + kTileChunk * i, &x[i]);
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const uint4 a = x[i % kAhead], b = words_[i];
      if (i + kAhead < kSteps) {
        detail::load_shared_in_order_if(used, plane + kTileChunk * (i + kAhead), &x[i % kAhead]);
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

 private:
  static constexpr int kSteps = K / kTileChunk;
  static_assert(K % kTileChunk == 0 && kSteps > 0);

  /// Of a lane's 16 bytes in a chunk, of either operand.
  __device__ __forceinline__ static int place(int lane) {
    return lane / 4 % 2 * (kTileChunk / 2) + 16 * (lane % 4);
  }

  uint4 words_[kSteps];
};

/// From what warp_tile::sums() returned, lanes 0 to 3 get the value of their row.
__device__ __forceinline__ float warp_tile_value(int sum) {
  const int middle = __shfl_down_sync(0xffffffffu, sum, tile_sum_lane(1, 0));
  const int high = __shfl_down_sync(0xffffffffu, sum, tile_sum_lane(2, 0));
  return fixed_point_sum(sum, middle, high);
}

WATERWEIGHT_ARCH_NAMESPACE_END
