// How the wgmma kernel's sums become Y: through shared memory, because a thread holds them as
// columns of Y, to lanes that own two neighbouring channels of one token and store them together.
#pragma once

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/gemm/weights.cuh>
#include <waterweight/detail/gemm/wgmma_policy.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

template <class Element, class Out, class Epilogue>
struct wgmma_output {
  weight_operand<Element> w;
  Out* y;
  std::int64_t ld;
  int m_count;
  bool pairs;  ///< two neighbouring elements of Y may be stored as one
  Epilogue epilogue;

  /// The scales of channels n and n + 1.
  __device__ __forceinline__ float2 scales(int n) const {
    return make_float2(n < w.rows ? apply_scale(w, 1.0f, n) : 0.0f,
                       n + 1 < w.rows ? apply_scale(w, 1.0f, n + 1) : 0.0f);
  }

  __device__ __forceinline__ float2 finish(float2 sum, float2 scale, int m, int n) const {
    return make_float2(epilogue(sum.x * scale.x, m, n), epilogue(sum.y * scale.y, m, n + 1));
  }

  __device__ __forceinline__ void store_pair(float2 value, int m, int n) const {
    struct alignas(2 * sizeof(Out)) pair {
      Out first, second;
    };
    *reinterpret_cast<pair*>(y + m * ld + n) = {from_float<Out>(value.x), from_float<Out>(value.y)};
  }

  /// Finishes and stores channels n and n + 1 of token m, of which any may lie outside.
  __device__ __forceinline__ void store_guarded(float2 sum, float2 scale, int m, int n) const {
    if (m >= m_count) return;
    if (n < w.rows) y[m * ld + n] = from_float<Out>(epilogue(sum.x * scale.x, m, n));
    if (n + 1 < w.rows) y[m * ld + n + 1] = from_float<Out>(epilogue(sum.y * scale.y, m, n + 1));
  }

  /// Tokens m0, m0 + stride, ...: `count` of `Count`; sum(i) gives the two sums of the i-th. What
  /// the epilogue reads is read for all of them before anything is stored.
  template <int Count, class Sum>
  __device__ __forceinline__ void store(int m0, int stride, int n, float2 scale, const Sum& sum,
                                        int count = Count) const {
    if (count >= Count && pairs && n + 1 < w.rows && m0 + (Count - 1) * stride < m_count) {
      float2 value[Count];
#pragma unroll
      for (int i = 0; i < Count; ++i) value[i] = finish(sum(i), scale, m0 + i * stride, n);
#pragma unroll
      for (int i = 0; i < Count; ++i) store_pair(value[i], m0 + i * stride, n);
    } else {
#pragma unroll
      for (int i = 0; i < Count; ++i) {
        if (i < count) store_guarded(sum(i), scale, m0 + i * stride, n);
      }
    }
  }
};

/// Writes token groups [Begin, Begin + Count) of a warp's 16 rows to `sums`, where that of its
/// first row and token 8 * Begin belongs; tokens are `pitch` floats apart.
template <int Begin, int Count, int Registers>
__device__ __forceinline__ void wgmma_write_sums(const float (&d)[Registers], float* sums,
                                                 int pitch) {
  const int lane = threadIdx.x % 32;
  float* const base = sums + 2 * (lane % 4) * pitch + lane / 4;
#pragma unroll
  for (int j = 0; j < Count; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      base[(8 * j + e % 2) * pitch + e / 2 * 8] = d[4 * (Begin + j) + e];
    }
  }
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
