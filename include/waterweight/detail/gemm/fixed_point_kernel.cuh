// One token times INT8 weights on the integer tensor cores: the weights enter mma as they lie in
// memory, the activations as three INT8 planes (device/fixed_point.cuh).
//
// Decoding must move one byte of weights per multiply-add, so what counts is instructions per byte:
// converting INT8 to 16 bit costs a warp some forty of them per 512 bytes, more than everything
// else together. Here 512 bytes of weights cost one load and two mma. gemm_bench on H200, 17920 x
// 2560, M = 1: 15.8 us, where FP16 weights through cuBLAS take 26.5.
//
// mma.m16n8k32.s8 takes its eight columns as four weight rows times two halves of 128 bytes of K,
// and its rows as the planes of the token for the first half, then for the second: of the products
// only those of equal halves are used. A load instruction of a warp then covers four rows by 128
// bytes, whole cache lines.
#pragma once

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/detail/gemm/weights.cuh>
#include <waterweight/device/fixed_point.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kFixedPointWarps = 4;
inline constexpr int kFixedPointThreads = 32 * kFixedPointWarps;
inline constexpr int kFixedPointTile = 8;     ///< weight rows: two groups of four
inline constexpr int kFixedPointChunk = 128;  ///< bytes of K per load instruction
inline constexpr int kFixedPointUnroll = 5;   ///< chunks a warp requests together, for both groups
/// A block keeps the sums of its tiles in shared memory until the end.
inline constexpr int kFixedPointMaxTiles = 32;
inline constexpr int kFixedPointMaxK = 16384;

/// Bytes of a row of planes, padded so that the rows a warp reads lie in different banks.
WATERWEIGHT_HOST_DEVICE constexpr int fixed_point_pitch(int k) { return k + 16; }

/// Rows of A that hold something: planes of both halves.
inline constexpr int kFixedPointRows = 2 * kPlanes;

/// Integer sums of one tile: [group of rows][warp][half, plane][row].
inline constexpr int kFixedPointTileSums = 2 * kFixedPointWarps * kFixedPointRows * 4;

constexpr std::size_t fixed_point_shared_bytes(int k, int tiles) {
  return static_cast<std::size_t>(kPlanes) * fixed_point_pitch(k) +
         sizeof(int) * kFixedPointTileSums * static_cast<std::size_t>(tiles);
}

__device__ __forceinline__ void mma_m16n8k32_s8(int (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                                std::uint32_t a2, std::uint32_t a3,
                                                std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Writes x[K] of one token as three planes of pitch fixed_point_pitch(K); returns its step.
/// `scratch`: a word per warp. Collective; the planes are visible after the next barrier.
template <class T>
__device__ __forceinline__ float stage_planes(const T* x, int k, std::int8_t* planes, int pitch,
                                              std::uint32_t* scratch) {
  const auto for_each_vector = [&](const auto& f) {
    for (int i = threadIdx.x * 8; i < k; i += kFixedPointThreads * 8) {
      const uint4 vector = *reinterpret_cast<const uint4*>(x + i);
      const float2 a = unpack_pair<T>(vector.x), b = unpack_pair<T>(vector.y);
      const float2 c = unpack_pair<T>(vector.z), d = unpack_pair<T>(vector.w);
      const float low[4] = {a.x, a.y, b.x, b.y}, high[4] = {c.x, c.y, d.x, d.y};
      f(i, low, high);
    }
  };
  std::uint32_t largest = 0;
  for_each_vector([&](int, const float(&low)[4], const float(&high)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      largest = max(largest, max(magnitude_bits(low[e]), magnitude_bits(high[e])));
    }
  });
  largest = __reduce_max_sync(0xffffffffu, largest);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < kFixedPointWarps; ++warp) largest = max(largest, scratch[warp]);
  const fixed_point_scale scale(largest);
  for_each_vector([&](int i, const float(&low)[4], const float(&high)[4]) {
    const fixed_point_words first(low, scale.inverse), second(high, scale.inverse);
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      *reinterpret_cast<uint2*>(planes + plane * pitch + i) =
          make_uint2(first.plane[plane], second.plane[plane]);
    }
  });
  return scale.step;
}

/// Requires M == 1, 16-byte aligned rows of X and W, K % 16 == 0, K <= kFixedPointMaxK.
/// Block b owns tiles b, b + gridDim.x, ...: together the blocks walk through W as it lies.
template <class T, class Out, class Epilogue>
__global__ void __launch_bounds__(kFixedPointThreads, 3)
    fixed_point_kernel(const T* __restrict__ x, weight_operand<std::int8_t> w, Out* y,
                       Epilogue epilogue) {
  constexpr int kStride = kFixedPointWarps * kFixedPointChunk;  // of one warp's chunks along K
  constexpr int kBlock = kFixedPointUnroll * kStride;           // K a warp takes at a time
  extern __shared__ __align__(16) std::byte memory[];
  __shared__ std::uint32_t scratch[kFixedPointWarps];
  const int pitch = fixed_point_pitch(w.cols);
  auto* const planes = reinterpret_cast<std::int8_t*>(memory);
  int* const sums = reinterpret_cast<int*>(planes + kPlanes * pitch);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int tiles = (w.rows + kFixedPointTile - 1) / kFixedPointTile;
  const int blocks_of_k = (w.cols + kBlock - 1) / kBlock;
  // This lane's place in a load: row group / 2 of four, half group % 2 of the chunk.
  const int lane_k = warp * kFixedPointChunk + group % 2 * 64 + quad * 16;

  uint4 weights[2][2][kFixedPointUnroll];  // [request][group of rows][chunk]
  struct place {
    int tile;
    int block;
  };
  const auto next_of = [&](place p) {
    if (++p.block == blocks_of_k) p = {p.tile + static_cast<int>(gridDim.x), 0};
    return p;
  };
  const auto request = [&](uint4(&target)[2][kFixedPointUnroll], place p) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int n = p.tile * kFixedPointTile + 4 * r + group / 2;
      const std::int8_t* row = w.data + n * w.ld;
#pragma unroll
      for (int c = 0; c < kFixedPointUnroll; ++c) {
        const int k = p.block * kBlock + c * kStride + lane_k;
        target[r][c] = n < w.rows && k < w.cols ? load_streaming(row + k) : make_uint4(0, 0, 0, 0);
      }
    }
  };

  place current{static_cast<int>(blockIdx.x), 0}, ahead = current;
#pragma unroll
  for (int d = 0; d < 2; ++d) {
    request(weights[d], ahead);
    ahead = next_of(ahead);
  }
  const float step = stage_planes(x, w.cols, planes, pitch, scratch);
  __syncthreads();

  int acc[2][4] = {};
  int tile_of_block = 0;
  // Row `group` of A: half, then plane. Rows 8 and up, the second registers, stay empty.
  const auto plane_words = [&](int k) {
    const int plane = group % kPlanes, from = k + group / kPlanes * 64;
    return group < kFixedPointRows && from < w.cols
               ? *reinterpret_cast<const uint4*>(planes + plane * pitch + from)
               : make_uint4(0, 0, 0, 0);
  };
  const auto consume = [&](uint4(&from)[2][kFixedPointUnroll]) {
#pragma unroll
    for (int c = 0; c < kFixedPointUnroll; ++c) {
      const int k = current.block * kBlock + c * kStride + warp * kFixedPointChunk;
      if (k >= w.cols) break;
      const uint4 a = plane_words(k + quad * 16);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        mma_m16n8k32_s8(acc[r], a.x, 0, a.y, 0, from[r][c].x, from[r][c].y);
        mma_m16n8k32_s8(acc[r], a.z, 0, a.w, 0, from[r][c].z, from[r][c].w);
      }
    }
    request(from, ahead);
    ahead = next_of(ahead);
    if (current.block + 1 == blocks_of_k) {
      // Column 2 * quad + half of C is weight row `quad` at that half.
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        int* out = sums + tile_of_block * kFixedPointTileSums +
                   (r * kFixedPointWarps + warp) * kFixedPointRows * 4 + quad;
        if (group < kFixedPointRows) out[group * 4] = group < kPlanes ? acc[r][0] : acc[r][1];
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[r][e] = 0;
      }
      ++tile_of_block;
    }
    current = next_of(current);
  };
  while (current.tile < tiles) {
    consume(weights[0]);
    if (current.tile >= tiles) break;
    consume(weights[1]);
  }
  __syncthreads();

  for (int i = threadIdx.x; i < tile_of_block * kFixedPointTile; i += kFixedPointThreads) {
    const int row = i % kFixedPointTile, tile = i / kFixedPointTile;
    const int n = (blockIdx.x + tile * gridDim.x) * kFixedPointTile + row;
    if (n >= w.rows) continue;
    int digit[kPlanes] = {};
#pragma unroll
    for (int source = 0; source < kFixedPointWarps; ++source) {
      const int* from = sums + tile * kFixedPointTileSums +
                        (row / 4 * kFixedPointWarps + source) * kFixedPointRows * 4 + row % 4;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int plane = 0; plane < kPlanes; ++plane) {
          digit[plane] += from[(half * kPlanes + plane) * 4];
        }
      }
    }
    const float sum = step * fixed_point_sum(digit[0], digit[1], digit[2]);
    y[n] = from_float<Out>(epilogue(apply_scale(w, sum, n), 0, n));
  }
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
