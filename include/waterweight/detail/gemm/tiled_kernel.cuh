// The mma.sync GEMM for many rows: cp.async pipeline, weights converted in registers.
//
// X is the A operand (m16), W the B operand (n8). As in the GEMV, K is permuted inside groups of
// 32: lane t of a quad takes 8 consecutive elements k = 8t .. 8t+7 of both operands, which are two
// k16 steps' worth. One 16-byte shared load then feeds half of two A fragments, one 8-byte load a
// whole pair of B fragments in INT8, and neither ldmatrix nor a repacked weight layout is needed.
#pragma once

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/detail/gemm/policy.cuh>
#include <waterweight/detail/gemm/weights.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// A [Rows, 64] tile of 1- or 2-byte elements in shared memory, 16-byte vectors permuted inside
/// each row so that neither the copies in nor the fragment loads out meet a bank conflict.
template <class Element, int Rows>
struct shared_tile {
  static constexpr int kRowBytes = 64 * sizeof(Element);
  static constexpr int kVectorsPerRow = kRowBytes / 16;
  static constexpr int kBytes = Rows * kRowBytes;
  static constexpr int kElementsPerVector = 16 / sizeof(Element);

  /// Byte offset of element k of `row`. Fragment loads of a quarter (16-bit) or half (8-bit) warp
  /// cover 2 or 4 rows: flipping the upper vector index bit by row parity (16-bit: 128-byte rows)
  /// or by pairs of rows (8-bit: 64-byte rows) sends them to different banks.
  __device__ static __forceinline__ int offset(int row, int k) {
    const int flip = sizeof(Element) == 2 ? (row & 1) * 4 : ((row >> 1) & 1) * 2;
    const int vector = (k / kElementsPerVector) ^ flip;
    return row * kRowBytes + vector * 16 +
           (k % kElementsPerVector) * static_cast<int>(sizeof(Element));
  }

  /// Copies rows [row0, row0 + Rows) x cols [k0, k0 + 64) of a matrix; what lies outside is zero.
  /// Aligned: rows start on 16-byte boundaries, so the copy is asynchronous.
  template <bool Aligned, int Threads>
  __device__ static __forceinline__ void fill(std::byte* tile, const Element* data, std::int64_t ld,
                                              int rows, int cols, int row0, int k0) {
#pragma unroll
    for (int i = 0; i < Rows * kVectorsPerRow / Threads; ++i) {
      const int vector = i * Threads + threadIdx.x;
      const int row = vector / kVectorsPerRow, k = (vector % kVectorsPerRow) * kElementsPerVector;
      const int left = row0 + row < rows ? min(max(cols - k0 - k, 0), kElementsPerVector) : 0;
      std::byte* target = tile + offset(row, k);
      // With nothing left the pointer must still be one that exists.
      const Element* source = left > 0 ? data + (row0 + row) * ld + k0 + k : data;
      if constexpr (Aligned) {
        cp_async_16(target, source, left * static_cast<int>(sizeof(Element)));
      } else {
        alignas(16) Element buffer[kElementsPerVector];
#pragma unroll
        for (int e = 0; e < kElementsPerVector; ++e) {
          buffer[e] = e < left ? source[e] : Element{};
        }
        *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(buffer);
      }
    }
  }
};

template <class T, class Element>
constexpr int tiled_gemm_shared_bytes(tiled_gemm_policy policy) {
  return policy.stages * policy.block_k *
         (policy.block_m * static_cast<int>(sizeof(T)) +
          policy.block_n * static_cast<int>(sizeof(Element)));
}

template <class T, class Element, class Out, class Epilogue, bool Large, bool Aligned>
__global__ void __launch_bounds__((Large ? kLargeTile : kSmallTile).threads())
    tiled_gemm_kernel(const T* __restrict__ x, std::int64_t x_ld, weight_operand<Element> w, Out* y,
                      std::int64_t y_ld, int m_count, Epilogue epilogue) {
  constexpr tiled_gemm_policy P = Large ? kLargeTile : kSmallTile;
  constexpr int kMTiles = P.warp_m() / 16, kNTiles = P.warp_n() / 8;
  using x_tile = shared_tile<T, P.block_m>;
  using w_tile = shared_tile<Element, P.block_n>;
  extern __shared__ __align__(16) std::byte shared[];
  std::byte* const w_shared = shared + P.stages * x_tile::kBytes;

  // Neighbouring blocks share the rows of W, the larger operand of a decoder's GEMMs.
  const int m0 = blockIdx.x * P.block_m, n0 = blockIdx.y * P.block_n;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int warp_m0 = warp % P.warps_m * P.warp_m(), warp_n0 = warp / P.warps_m * P.warp_n();

  const auto fill_stage = [&](int stage, int k0) {
    x_tile::template fill<Aligned, P.threads()>(shared + stage * x_tile::kBytes, x, x_ld, m_count,
                                                w.cols, m0, k0);
    w_tile::template fill<Aligned, P.threads()>(w_shared + stage * w_tile::kBytes, w.data, w.ld,
                                                w.rows, w.cols, n0, k0);
  };

  float acc[kMTiles][kNTiles][4] = {};
  const int steps = (w.cols + P.block_k - 1) / P.block_k;
#pragma unroll
  for (int stage = 0; stage < P.stages - 1; ++stage) {
    if (stage < steps) fill_stage(stage, stage * P.block_k);
    cp_async_commit();
  }

  for (int step = 0; step < steps; ++step) {
    cp_async_wait<P.stages - 2>();
    __syncthreads();  // this step's tile has arrived; everybody has left the one refilled next
    const int next = step + P.stages - 1;
    if (next < steps) fill_stage(next % P.stages, next * P.block_k);
    cp_async_commit();

    const std::byte* xs = shared + step % P.stages * x_tile::kBytes;
    const std::byte* ws = w_shared + step % P.stages * w_tile::kBytes;
#pragma unroll
    for (int k = 0; k < P.block_k; k += 32) {
      std::uint32_t b[kNTiles][4];  // [.][2 * k16 step + register]
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
        const std::byte* source = ws + w_tile::offset(warp_n0 + 8 * j + group, k + 8 * quad);
        if constexpr (is_quantized_v<Element>) {
          const uint2 eight = *reinterpret_cast<const uint2*>(source);
          dequantize_four<T>(eight.x, b[j][0], b[j][1]);
          dequantize_four<T>(eight.y, b[j][2], b[j][3]);
        } else {
          *reinterpret_cast<uint4*>(b[j]) = *reinterpret_cast<const uint4*>(source);
        }
      }
#pragma unroll
      for (int i = 0; i < kMTiles; ++i) {
        const int row = warp_m0 + 16 * i + group;
        const uint4 low = *reinterpret_cast<const uint4*>(xs + x_tile::offset(row, k + 8 * quad));
        const uint4 high =
            *reinterpret_cast<const uint4*>(xs + x_tile::offset(row + 8, k + 8 * quad));
        const std::uint32_t a0[4] = {low.x, high.x, low.y, high.y};
        const std::uint32_t a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
        for (int j = 0; j < kNTiles; ++j) {
          mma_m16n8k16<T>(acc[i][j], a0, b[j][0], b[j][1]);
          mma_m16n8k16<T>(acc[i][j], a1, b[j][2], b[j][3]);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kMTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int m = m0 + warp_m0 + 16 * i + group + 8 * (e / 2);
        const int n = n0 + warp_n0 + 8 * j + 2 * quad + e % 2;
        if (m < m_count && n < w.rows) {
          y[m * y_ld + n] = from_float<Out>(epilogue(apply_scale(w, acc[i][j][e], n), m, n));
        }
      }
    }
  }
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
