// From the sums of the warps to the output of the streaming kernel.
#pragma once

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/gemm/stream_schedule.cuh>
#include <waterweight/detail/gemm/weights.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// Adds sums of several sources, one after another in memory, in order. A lane has four tokens of
/// each eight for row lane / 2.
template <int NTiles>
__device__ __forceinline__ void stream_add(float4 (&sum)[NTiles], const float* from, int count) {
  const float* mine = from + threadIdx.x % 32 * 4;
#pragma unroll 5
  for (int i = 0; i < count; ++i) {
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      const float4 next = *reinterpret_cast<const float4*>(mine + (i * NTiles + j) * 128);
      sum[j] =
          make_float4(sum[j].x + next.x, sum[j].y + next.y, sum[j].z + next.z, sum[j].w + next.w);
    }
  }
}

/// Turns sums into output: one warp.
template <class Out, class Epilogue>
struct stream_output {
  const weight_operand<std::int8_t>& w;
  const stream_share& share;
  float (&scales)[kStreamScales][kStreamGroup];
  Out* y;
  std::int64_t ld;
  int m_count;
  const Epilogue& epilogue;

  /// Scales are asked for well ahead: they queue behind all the weights under way. `i` counts the
  /// groups that this warp finishes.
  __device__ __forceinline__ void request_scales(int i, int group) {
    const int lane = threadIdx.x % 32, n = share.channel(group, lane);
    if (lane < kStreamGroup && group < share.total && n < w.rows) {
      cp_async_4(scales[i % kStreamScales] + lane, w.scale + n, true);
    }
    cp_async_commit();
  }

  /// That of the i-th, with `Later` asked for since.
  template <int Later>
  __device__ __forceinline__ float scale(int i) const {
    cp_async_wait<Later>();
    __syncwarp();
    return scales[i % kStreamScales][threadIdx.x % 32 / 2];
  }

  template <int NTiles>
  __device__ __forceinline__ void store(const float4 (&sum)[NTiles], float scale, int group) const {
    const int lane = threadIdx.x % 32, n = share.channel(group, lane / 2);
    if (n >= w.rows) return;
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      const float values[4] = {sum[j].x, sum[j].y, sum[j].z, sum[j].w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int m = 8 * j + lane % 2 * 4 + e;
        if (m < m_count) y[m * ld + n] = from_float<Out>(epilogue(values[e] * scale, m, n));
      }
    }
  }
};

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
