// Up to 32 tokens with INT8 weights in the frame of the wgmma kernel: warps multiply by mma.sync
// and split K, where wgmma would take as long as for more tokens.
#pragma once

#include <waterweight/detail/arch/dequant.cuh>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/detail/arch/named_barrier.cuh>
#include <waterweight/detail/gemm/wgmma_producer.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// A warp of a warpgroup. Each multiplies all of the warpgroup's 48 or 64 rows: warps 0 and 1 take
/// half of K of the stages at even places of the ring each, warps 2 and 3 of those at odd ones. So
/// an element of X is read for all of them, not for 16. In the end the warps add their sums, and
/// each has those that wgmma would have left to it; of 48 rows the last warp has none.
template <class T, wgmma_tile Tile>
struct mma_consumer {
  static constexpr wgmma_policy P = wgmma_policy_of(Tile);
  static constexpr wgmma_layout L = wgmma_layout_of(P, 1);
  static constexpr int kRowTiles = P.mma_row_tiles;
  static constexpr int kTokenTiles = P.tokens / 8;
  using sums = float[kRowTiles][kTokenTiles][4];
  static_assert(kRowTiles <= kMmaWarps && kTokenTiles % kMmaAdded == 0 && L.blocks == 2 &&
                L.stage_k() == 128);
  static_assert(L.stages % 2 == 0, "a place is always the same warps'");

  wgmma_ring<std::int8_t, Tile>& ring;

  /// acc += the product of the current stage's half of K. mma does not care which elements of K it
  /// gets, if those of both operands are the same: lane 4g + q takes 16 in a row, one vector of
  /// a row of W and two of a row of X, 4 of them for each mma. Vector j of row r is at j ^ r % 8 in
  /// both operands' rows of 128 bytes. Which vector a lane takes is such that the eight lanes that
  /// are served together, of two rows, find theirs in different banks, in W and in X.
  __device__ __forceinline__ void multiply_half(sums& acc, int stages) const {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, half = threadIdx.x / 32 % 2;
    const int vector = ((q & 2) | (q & 1) * 5) ^ half;
    const std::uint32_t w =
        ring.stage + (threadIdx.x / 128 * P.group_rows() + g) * 128 + (vector ^ g) * 16;
    const std::uint32_t x = ring.x(vector / 4) + g * 128;
    const std::uint32_t x_vector = vector % 4 * 2;

    uint4 weights[kRowTiles][2], tokens[kTokenTiles][2];
    std::uint32_t word = 0;
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        tokens[j][i] = load_shared_in_order(x + j * 1024 + ((x_vector + i) ^ g) * 16);
        word |= tokens[j][i].w;
      }
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        weights[i][r] = load_shared_in_order(w + (16 * i + 8 * r) * 128);
        word |= weights[i][r].w;
      }
    }
    const std::uint32_t free = ring.free() + after_loading(word, stages);
    __syncwarp();
    if (lane == 0) mbarrier_arrive(free);

    const auto part = [](const uint4& v, int i) {
      return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
    };
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        std::uint32_t a[4];
        scaled_dequantizer<T>::four(part(weights[i][0], t), a[0], a[2]);
        scaled_dequantizer<T>::four(part(weights[i][1], t), a[1], a[3]);
#pragma unroll
        for (int j = 0; j < kTokenTiles; ++j) {
          const uint4& pairs = tokens[j][t / 2];
          mma_m16n8k16<T>(acc[i][j], a, part(pairs, t % 2 * 2), part(pairs, t % 2 * 2 + 1));
        }
      }
    }
  }

  /// d = the sums over `stages` >= 1 stages, as wgmma leaves them. `exchange` is this warpgroup's.
  __device__ __forceinline__ void accumulate(int stages, std::byte* exchange,
                                             float (&d)[P.tokens / 2]) {
    sums acc;
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][j][e] = 0.0f;
      }
    }
    const std::uint32_t turn = threadIdx.x / 64 % 2;
#pragma unroll 1
    for (int k = 0; k < stages; ++k, ring.advance()) {
      // Places of the ring, not stages of the tile: a warp must read all fillings of a place or
      // none, because between two fillings the parity tells only who has read the first.
      if ((ring.filled - ring.first_barrier) / 16 % 2 != turn) continue;
      mbarrier_wait(ring.filled, ring.parity);
      multiply_half(acc, stages);
    }
    add(acc, reinterpret_cast<float4*>(exchange) + threadIdx.x % 32, d);
  }

  /// Each warp keeps 16 of the rows and hands the others to the warps that keep these, which add
  /// in the order of the warps behind them. Few tokens at a time, so that `exchange` stays small.
  __device__ __forceinline__ static void add(const sums& acc, float4* exchange,
                                             float (&d)[P.tokens / 2]) {
    constexpr int kGiven = kMmaWarps - 1;
    const int warp = threadIdx.x / 32 % kMmaWarps, barrier = 1 + threadIdx.x / 128;
#pragma unroll
    for (int first = 0; first < kTokenTiles; first += kMmaAdded) {
      if (first > 0) named_barrier(barrier, 128);
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        if (i == warp) continue;
        float4* const to =
            exchange + (i * kGiven + (warp - i + kGiven) % kMmaWarps) * kMmaAdded * 32;
#pragma unroll
        for (int j = 0; j < kMmaAdded; ++j) {
          const float(&a)[4] = acc[i][first + j];
          to[j * 32] = make_float4(a[0], a[1], a[2], a[3]);
        }
      }
      named_barrier(barrier, 128);
#pragma unroll
      for (int j = 0; j < kMmaAdded; ++j) {
        float* const sum = d + 4 * (first + j);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          // Registers have no run-time index.
          float own = acc[0][first + j][e];
#pragma unroll
          for (int i = 1; i < kRowTiles; ++i) own = i == warp ? acc[i][first + j][e] : own;
          sum[e] = own;
        }
#pragma unroll
        for (int i = 0; i < kGiven; ++i) {
          const float4 other = exchange[((warp * kGiven + i) * kMmaAdded + j) * 32];
          sum[0] += other.x;
          sum[1] += other.y;
          sum[2] += other.z;
          sum[3] += other.w;
        }
      }
    }
  }
};

#endif  // sm_90a

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
