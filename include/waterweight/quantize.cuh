// Per-output-channel symmetric INT8 quantization of weights, on the device.
#pragma once

#include <cuda_runtime.h>

#include <waterweight/detail/quantize_kernels.cuh>
#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// scale[n] = max_k |W[n, k]| / 127, q[n, k] = round-half-even(W[n, k] / scale[n]) in [-127, 127].
///
/// T: float, __half or __nv_bfloat16 (possibly const).
/// w:  [N, K], row-major, any ld >= K. q: the same N and K, any ld >= K; must not overlap w.
/// A row of zeros, or one so small that its scale would be subnormal, gets scale 0 and zeros.
/// A row that holds a NaN or an infinity gets scale NaN and zeros (whatever is computed from it is
/// NaN, never plausible) and is reported in `bad_rows`.
/// bad_rows: device memory, one int the caller has set to 0; afterwards the number of rows with a
/// non-finite element is added to it.
/// Cost: reads N*K*sizeof(T) bytes and writes N*K. Rows that do not start on 16-byte boundaries (of
/// q: 8), and those longer than 80 KiB, are read a second time, from cache.
/// Deterministic. Matches reference::quantize_per_channel bit for bit.
/// Errors: cudaErrorInvalidValue (null pointer, size < 1, ld < K, differing shapes), nothing
/// launched; otherwise the launch's own code.
template <class T>
[[nodiscard]] cudaError_t quantize_per_channel(matrix_view<T> w, mutable_int8_weight_view q,
                                               int* bad_rows, cudaStream_t stream) noexcept {
  return detail::launch_quantize<std::remove_const_t<T>>(w, q, bad_rows, stream);
}

/// w[n, k] = round_to_T(scale[n] * q[n, k]). T: float, __half or __nv_bfloat16.
/// Cost: reads N*K bytes, writes N*K*sizeof(T). Errors as above.
template <class T>
[[nodiscard]] cudaError_t dequantize(int8_weight_view q, matrix_view<T> w,
                                     cudaStream_t stream) noexcept {
  return detail::launch_dequantize<T>(q, w, stream);
}

WATERWEIGHT_ARCH_NAMESPACE_END
