// The device-wide small-M kernel: one block_gemv per 16 output channels. Where the caller allows
// it, a block asks for its first weights before earlier kernels have ended.
#pragma once

#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/device/gemv.cuh>
#include <waterweight/device/prologue.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr gemv_policy kGemvPolicy{8, 1, 4};

template <class T, class Element, class Out, class Epilogue, int NTiles>
__global__ void __launch_bounds__(kGemvPolicy.threads())
    gemv_kernel(global_activations<T> x, weight_operand<Element> w, Out* y, std::int64_t y_ld,
                int m_count, Epilogue epilogue, bool early) {
  // 16-bit weights are twice the bytes: half the chunks keep as much in flight.
  constexpr int kUnroll = kGemvPolicy.unroll / static_cast<int>(sizeof(Element));
  using gemv = block_gemv<T, Element, kGemvPolicy.warps, NTiles, kUnroll>;
  __shared__ float reduction[gemv::kPolicy.reduction_floats(8 * NTiles)];
  gemv block(w, blockIdx.x * 16, 0, w.cols);
  if (early) block.begin();
  follow_earlier_kernels();
  if (!early) block.begin();
  block.accumulate(x, m_count);
  block.reduce(m_count, reduction, [&](int m, int n, float sum) {
    y[m * y_ld + n] = from_float<Out>(epilogue(apply_scale(w, sum, n), m, n));
  });
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
