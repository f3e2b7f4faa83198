// Y = epilogue(X W^T) with INT8 (w8a16_gemm) or 16-bit (w16a16_gemm) weights.
#pragma once

#include <cuda_runtime.h>

#include <waterweight/detail/gemm/launch.cuh>
#include <waterweight/device/epilogue.cuh>
#include <waterweight/device_info.cuh>
#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// Y[m, n] = epilogue(scale[n] * sum_k X[m, k] * Wq[n, k], m, n), summed in fp32.
/// A token with an infinity may be NaN throughout.
///
/// X: __half or __nv_bfloat16 (possibly const). Out: the same type or float.
/// x: [M, K], y: [M, N], w: [N, K] INT8 and scale[N]; all row-major, any leading dimension >= the
/// row, any M, N, K >= 1 (unaligned rows take a slower path). y must not overlap x or w.
/// Epilogue: a functor as in device/epilogue.cuh.
/// ws: at least w8a16_gemm_workspace_bytes(M, N, K, device).
/// early: early_read::weights lets weights be fetched before the kernel ahead has ended: a chain of
/// products then reads memory without a pause.
/// Cost: 2*M*N*K FLOP; reads N*K bytes of weights once per 64 rows of X or more.
/// Deterministic: the order of the sum over K depends on the shape and the device alone.
/// Errors: cudaErrorInvalidValue (null, size < 1, ld < row, mismatched shapes, sizes or leading
/// dimensions of 2^31 or more, short or unaligned workspace), nothing launched; else the launch's
/// own code.
template <class X, class Out, class Epilogue>
[[nodiscard]] cudaError_t w8a16_gemm(const device_info& device, matrix_view<X> x,
                                     int8_weight_view w, matrix_view<Out> y, Epilogue epilogue,
                                     workspace ws, cudaStream_t stream,
                                     early_read early = early_read::nothing) noexcept {
  if (!detail::valid_weights(w)) return cudaErrorInvalidValue;
  const detail::weight_operand<std::int8_t> operand{w.data, w.scale, static_cast<int>(w.rows),
                                                    static_cast<int>(w.cols), w.ld};
  return detail::gemm(device, x, operand, y, epilogue, ws, stream, early);
}

/// Longest row of w8a16_fixed_point_gemv.
inline constexpr int kFixedPointGemvMaxK = detail::kFixedPointMaxK;

/// w8a16_gemm of one token with an exact sum: x is rounded to 24-bit fixed point of its largest
/// |x|, in steps of at least 2^-126, and multiplied by INT8 weights on integer tensor cores
/// (device/fixed_point.cuh). Any kernel that sums such products, in whatever order, gets the same
/// bits. A token with a NaN or an infinity is NaN throughout.
///
/// x: [1, K], y: [1, N]. x and the rows of w start on 16-byte boundaries, K % 16 == 0 and
/// K <= kFixedPointGemvMaxK.
/// Errors: as w8a16_gemm, and cudaErrorInvalidValue for operands that are not of that form.
template <class X, class Out, class Epilogue>
[[nodiscard]] cudaError_t w8a16_fixed_point_gemv(const device_info& device, matrix_view<X> x,
                                                 int8_weight_view w, matrix_view<Out> y,
                                                 Epilogue epilogue, cudaStream_t stream) noexcept {
  if (!detail::valid_weights(w)) return cudaErrorInvalidValue;
  const detail::weight_operand<std::int8_t> operand{w.data, w.scale, static_cast<int>(w.rows),
                                                    static_cast<int>(w.cols), w.ld};
  return detail::fixed_point_gemv(device, x, operand, y, epilogue, stream);
}

/// w8a16_gemm with weights of X's own type: w is [N, K].
template <class X, class Out, class Epilogue>
[[nodiscard]] cudaError_t w16a16_gemm(const device_info& device, matrix_view<X> x,
                                      matrix_view<const std::remove_const_t<X>> w,
                                      matrix_view<Out> y, Epilogue epilogue, workspace ws,
                                      cudaStream_t stream,
                                      early_read early = early_read::nothing) noexcept {
  if (!detail::valid_matrix(w)) return cudaErrorInvalidValue;
  const detail::weight_operand<std::remove_const_t<X>> operand{
      w.data, nullptr, static_cast<int>(w.rows), static_cast<int>(w.cols), w.ld};
  return detail::gemm(device, x, operand, y, epilogue, ws, stream, early);
}

/// Workspace that any call with m <= M, n <= N, k <= K needs on this device. Serves both functions.
/// Its address must be a multiple of 16.
constexpr std::size_t w8a16_gemm_workspace_bytes(std::int64_t m, std::int64_t, std::int64_t,
                                                 const device_info& device) noexcept {
  return detail::gemm_workspace_bytes(device, m);
}

WATERWEIGHT_ARCH_NAMESPACE_END
