// How the tiled GEMM's sums become Y: a lane owns some neighbouring columns of each of its rows.
#pragma once

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/gemm/weights.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

template <class Element, class Out, class Epilogue>
struct tiled_output {
  weight_operand<Element> w;
  Out* y;
  std::int64_t ld;
  int m_count;
  bool vectors;  ///< y and its rows start on 16-byte boundaries
  Epilogue epilogue;

  /// The scales of columns n .. n + Count - 1.
  template <int Count>
  __device__ __forceinline__ void read_scales(int n, float (&scale)[Count]) const {
#pragma unroll
    for (int e = 0; e < Count; ++e) scale[e] = n + e < w.rows ? apply_scale(w, 1.0f, n + e) : 0.0f;
  }

  /// Finishes and stores columns n .. n + Count - 1 (4 or 8) of row m, of which any may lie
  /// outside. What the epilogue reads is read for all of them before anything is stored.
  template <int Count>
  __device__ __forceinline__ void store(const float (&sum)[Count], const float (&scale)[Count],
                                        int m, int n) const {
    if (m >= m_count) return;
    constexpr int kBytes = Count * static_cast<int>(sizeof(Out));
    using vector = std::conditional_t<kBytes == 8, uint2, uint4>;
    Out* const to = y + m * ld + n;
    if (vectors && n + Count <= w.rows) {
      alignas(16) Out value[Count];
#pragma unroll
      for (int e = 0; e < Count; ++e) {
        value[e] = from_float<Out>(epilogue(sum[e] * scale[e], m, n + e));
      }
#pragma unroll
      for (int i = 0; i < kBytes / static_cast<int>(sizeof(vector)); ++i) {
        reinterpret_cast<vector*>(to)[i] = reinterpret_cast<const vector*>(value)[i];
      }
    } else {
#pragma unroll
      for (int e = 0; e < Count; ++e) {
        if (n + e < w.rows) to[e] = from_float<Out>(epilogue(sum[e] * scale[e], m, n + e));
      }
    }
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
