// From the sums of the warps to the output of the streaming kernel: one warp of each block.
#pragma once

#include <waterweight/detail/arch/cluster.cuh>
#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/gemm/stream_barriers.cuh>
#include <waterweight/detail/gemm/weights.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// Sums of one group: a lane has four tokens of each eight for row lane / 2.
template <int NTiles>
struct stream_sum {
  float4 part[NTiles];

  /// Adds `count` of them, at most `Most`, one after another in memory, in order.
  template <int Most>
  __device__ __forceinline__ void add(const float* from, int count) {
    const float* const mine = from + threadIdx.x % 32 * 4;
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      float4 next[Most];
#pragma unroll
      for (int i = 0; i < Most; ++i) {
        next[i] = i < count ? *reinterpret_cast<const float4*>(mine + (i * NTiles + j) * 128)
                            : make_float4(0, 0, 0, 0);
      }
      part[j] = next[0];
#pragma unroll
      for (int i = 1; i < Most; ++i) {
        part[j] = make_float4(part[j].x + next[i].x, part[j].y + next[i].y, part[j].z + next[i].z,
                              part[j].w + next[i].w);
      }
    }
  }

  /// Of rows taken in 1 << fold parts, which are neighbours, each multiplied with all parts of a
  /// token's activations: adds up the products of parts with their own. The lane of part 0 then has
  /// the sums of its first 4 >> fold tokens.
  __device__ __forceinline__ void fold(int fold) {
    static_assert(NTiles == 1, "parts of tokens fill no more");
    const auto add_neighbour = [](float v, int rows) {
      return v + __shfl_xor_sync(0xffffffffu, v, 2 * rows);
    };
    float4& p = part[0];
    const int row = threadIdx.x % 32 / 2;
    p.x = row % 2 == 0 ? p.x : p.y;
    p.y = row % 2 == 0 ? p.z : p.w;
    if (fold == 1) {
      p.x = add_neighbour(p.x, 1);
      p.y = add_neighbour(p.y, 1);
    } else {
      p.x = add_neighbour(add_neighbour(row % 4 < 2 ? p.x : p.y, 1), 2);
    }
  }

  /// Made of all that add() loaded.
  __device__ __forceinline__ std::uint32_t word() const {
    std::uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < NTiles; ++j) bits |= __float_as_uint(part[j].w);
    return bits;
  }
};

template <class Element, class Out, class Epilogue, int NTiles>
struct stream_output {
  const weight_operand<Element>& w;
  const stream_share& share;
  Out* y;
  std::int64_t ld;
  int m_count;
  const Epilogue& epilogue;
  float (&scales)[kStreamScales][kStreamGroup];
  int fold;    ///< of the plan
  float unit;  ///< what all sums are short of

  __device__ __forceinline__ int channel(int group) const {
    const int row = threadIdx.x % 32 / 2;
    return share.row_of(group * kStreamTiles + row / kStreamTile) + row % kStreamTile;
  }

  /// Scales are asked for well ahead: they queue behind all the weights under way. `i` counts the
  /// groups that this block finishes.
  __device__ __forceinline__ void request_scales(int i, int group) const {
    if constexpr (is_quantized_v<Element>) {
      const int lane = threadIdx.x % 32;
      const int n = share.row_of(group * kStreamTiles + lane / kStreamTile) + lane % kStreamTile;
      if (lane < kStreamGroup && n < w.rows) {
        cp_async_4(scales[i % kStreamScales] + lane, w.scale + (n >> fold), true);
      }
      cp_async_commit();
    }
  }

  /// What this lane's sums of the i-th are to be multiplied by, with `Later` asked for since.
  template <int Later>
  __device__ __forceinline__ float scale(int i) const {
    if constexpr (is_quantized_v<Element>) {
      cp_async_wait<Later>();
      __syncwarp();
      return unit * scales[i % kStreamScales][threadIdx.x % 32 / 2];
    } else {
      return unit;
    }
  }

  __device__ __forceinline__ void store(stream_sum<NTiles> sum, float scale, int group) const {
    const int row = channel(group), n = row >> fold;
    if constexpr (NTiles == 1) {
      if (fold > 0) sum.fold(fold);
    }
    if (row >= w.rows || row != n << fold) return;
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      const float values[4] = {sum.part[j].x, sum.part[j].y, sum.part[j].z, sum.part[j].w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int m = ((8 * j + threadIdx.x % 2 * 4) >> fold) + e;
        if (e < 4 >> fold && m < m_count) {
          y[m * ld + n] = from_float<Out>(epilogue(values[e] * scale, m, n));
        }
      }
    }
  }
};

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
