// Host side of w8a16_gemm and w16a16_gemm: checks, the choice of a kernel, the launch.
#pragma once

#include <algorithm>

#include <waterweight/detail/gemm/fixed_point_kernel.cuh>
#include <waterweight/detail/gemm/gemv_kernel.cuh>
#include <waterweight/detail/gemm/policy.cuh>
#include <waterweight/detail/gemm/stream_launch.cuh>
#include <waterweight/detail/gemm/tiled_launch.cuh>
#include <waterweight/detail/gemm/wgmma_launch.cuh>
#include <waterweight/detail/gemm/wgmma_selector.cuh>
#include <waterweight/detail/launch.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

template <class T, class Element, class Out, class Epilogue>
struct gemm_launcher {
  matrix_view<const T> x;
  weight_operand<Element> w;
  matrix_view<Out> y;
  Epilogue epilogue;
  workspace ws;
  cudaStream_t stream;
  early_read early;

  cudaError_t wgmma(const device_info& device, wgmma_plan plan) const {
    if constexpr (kCompiledForSm90) {
      return wgmma_launcher<T, Element, Out, Epilogue>{
          x, w, y, epilogue, stream, early == early_read::weights}
          .run(device, plan);
    } else {
      return cudaErrorInvalidDeviceFunction;
    }
  }

  /// cudaErrorInvalidDeviceFunction: not for this kernel, nothing was launched.
  template <int NTiles>
  cudaError_t stream_weights(const device_info& device) const {
    if constexpr (kCompiledForSm90) {
      using launcher = stream_launcher<T, Element, Out, Epilogue>;
      const stream_plan plan =
          make_stream_plan(device.sm_count, x.rows, w.rows, w.cols, w.ld, sizeof(Element));
      const bool pays = plan.clusters > 0 && plan.cluster <= kStreamPayingCluster;
      if (pays && launcher::present()) {
        return launcher{x, w, y, epilogue, stream, early == early_read::weights}
            .template run<NTiles>(plan);
      }
    }
    return cudaErrorInvalidDeviceFunction;
  }

  template <int NTiles>
  cudaError_t gemv() const {
    return launch_following(gemv_kernel<T, Element, Out, Epilogue, NTiles>,
                            dim3(static_cast<unsigned>(ceil_div(w.rows, 16))),
                            kGemvPolicy.threads(), 0, stream, global_activations<T>{x.data, x.ld},
                            w, y.data, y.ld, static_cast<int>(x.rows), epilogue,
                            early == early_read::weights);
  }

  /// Whether the wgmma kernel is faster than kernels for few tokens. With more than eight the
  /// streaming kernel has one block on an SM, so that its start and the activations show: H200, 16
  /// tokens, us with the wgmma kernel (by mma.sync, see mma_consumer) and with the streaming
  /// kernel: 2560 x 2560 4.0, 5.6; 10240 x 2560 8.4, 11.9; 2560 x 10240 8.4, 12.6; 17920 x
  /// 2560 13.1, 15.9; 50304 x 2560 32.6, 33.5. Beside another kernel the streaming kernel, which
  /// asks for all of memory, is the slower one from two tokens on: a step of Pythia-2.8B, the MLP
  /// beside the attention, takes with it and with wgmma 2283 and 2103 us at 16 sequences (before
  /// mma.sync), 1739 and 1432 at 8, 1340 and 1217 at 4, 1248 and 1143 at 2 (medians).
  /// Where K is too long for it, gemv is the alternative: 4096 x 16384 19.8 with wgmma, 26.8 (8
  /// tokens). Otherwise wgmma does not pay for up to 8 tokens: 2560 x 10240 8.4, 7.7 (8 tokens),
  /// 8.4, 7.4 (5); 16384 x 4096 17.3, 16.8 (8), 18.0, 15.5 (1); 7680 x 2560 6.5, 5.4 (8); 50304 x
  /// 2560 32.7, 29.2 (8). 16-bit weights, 16 tokens: 2560 x 2560 5.5, 7.3; 7680 x 2560 11.2, 12.2;
  /// 10240 x 2560 15.7, 15.0; 2560 x 10240 15.6, 16.0; 4096 x 16384 37.8, 62.4 (gemv).
  bool prefers_wgmma(const device_info& device) const {
    if (!kCompiledForSm90 || device.compute_capability != 90) return false;
    constexpr std::int64_t kMillion = 1 << 20;
    const std::int64_t weights = std::int64_t{w.rows} * w.cols;
    const bool enough = weights >= 4 * kMillion;
    if constexpr (!is_quantized_v<Element>) {
      return x.rows > 8 && !device.beside_others && enough &&
             (w.cols > 2560 || weights <= 24 * kMillion);
    } else {
      if (device.beside_others && x.rows > 1) return true;
      if (x.rows > 8) return enough;
      return w.cols > 10240 && weights > (x.rows > 4 ? 24 : 32) * kMillion;
    }
  }

  wgmma_plan plan_wgmma(const device_info& device) const {
    return default_wgmma_selector{}(device, x.rows, w.rows, w.cols, is_quantized_v<Element>);
  }
  /// With fewer, wgmma has too few tiles. The attention's dense, 2560 x 2560, by gemv instead of
  /// the streaming kernel: 1547 us a step and 1457 (8 sequences); by gemv for 16 tokens 1432.
  static constexpr std::int64_t kFewWeights = 8 << 20;

  cudaError_t run(const device_info& device) const {
    const bool copyable = is_aligned(x.data, 16) && is_aligned(w.data, 16) &&
                          x.ld * sizeof(T) % 16 == 0 && w.ld * sizeof(Element) % 16 == 0;
    const gemm_kind kind = default_gemm_selector{}(x.rows, copyable && w.cols % 16 == 0);
    if (kind == gemm_kind::gemv && copyable && prefers_wgmma(device)) {
      const bool few = std::int64_t{w.rows} * w.cols <= kFewWeights;
      if (device.beside_others && few) return gemv<2>();
      const cudaError_t status = wgmma(device, plan_wgmma(device));
      if (status != cudaErrorInvalidDeviceFunction) return status;
    }
    if (kind == gemm_kind::gemv && may_stream(device)) {
      const cudaError_t status =
          stream_n_tiles(x.rows) == 1 ? stream_weights<1>(device) : stream_weights<2>(device);
      if (status != cudaErrorInvalidDeviceFunction) return status;
    }
    if (kind == gemm_kind::gemv) return x.rows <= 8 ? gemv<1>() : gemv<2>();
    if (copyable && may_use_wgmma(device, x.rows)) {
      const cudaError_t status = wgmma(device, plan_wgmma(device));
      if (status != cudaErrorInvalidDeviceFunction) return status;
    }
    const tiled_launcher<T, Element, Out, Epilogue> tiled{x, w, y, epilogue, ws.data, stream};
    // Unaligned rows are rare: one tile shape serves them all.
    if (!copyable) return tiled.template run<tiled_tile::m64_n64, false>({tiled_tile::m64_n64});
    // What this call was asked for, not what it got: the choice depends on nothing but the shape.
    return tiled.run(default_tiled_selector{}(device, x.rows, w.rows, w.cols, sizeof(Element),
                                              gemm_workspace_bytes(device, x.rows)));
  }
};

/// Common to both weight types; the caller has checked its own weights.
template <class X, class Element, class Out, class Epilogue>
cudaError_t gemm(const device_info& device, const matrix_view<X>& x,
                 const weight_operand<Element>& w, const matrix_view<Out>& y,
                 const Epilogue& epilogue, const workspace& ws, cudaStream_t stream,
                 early_read early) {
  using T = std::remove_const_t<X>;
  static_assert(is_activation_v<T>, "X must be __half or __nv_bfloat16");
  static_assert(std::is_same_v<Out, T> || std::is_same_v<Out, float>,
                "Y must be of X's type or float");
  // 65535 is the grid's limit in y, in blocks of at least 64 rows of W.
  const bool valid = valid_matrix(x) && valid_matrix(y) && device.sm_count > 0 &&
                     x.cols == w.cols && y.rows == x.rows && y.cols == w.rows &&
                     w.rows <= std::int64_t{65535} * 64;
  const std::size_t needed = gemm_workspace_bytes(device, x.rows);
  if (!valid || !valid_workspace(ws, needed) || (needed > 0 && !is_aligned(ws.data, 16))) {
    return cudaErrorInvalidValue;
  }
  return gemm_launcher<T, Element, Out, Epilogue>{x, w, y, epilogue, ws, stream, early}.run(device);
}

/// One token in fixed point; the caller has checked the weights.
template <class X, class Out, class Epilogue>
cudaError_t fixed_point_gemv(const device_info& device, const matrix_view<X>& x,
                             const weight_operand<std::int8_t>& w, const matrix_view<Out>& y,
                             const Epilogue& epilogue, cudaStream_t stream) {
  using T = std::remove_const_t<X>;
  static_assert(is_activation_v<T>, "X must be __half or __nv_bfloat16");
  static_assert(std::is_same_v<Out, T> || std::is_same_v<Out, float>,
                "Y must be of X's type or float");
  const bool valid = valid_matrix(x) && valid_matrix(y) && device.sm_count > 0 && x.rows == 1 &&
                     x.cols == w.cols && y.rows == 1 && y.cols == w.rows && w.cols % 16 == 0 &&
                     w.cols <= kFixedPointMaxK && w.ld % 16 == 0 && is_aligned(x.data, 16) &&
                     is_aligned(w.data, 16);
  if (!valid) return cudaErrorInvalidValue;
  const std::int64_t tiles = ceil_div(w.rows, kFixedPointTile);
  // Three blocks per SM hold what the registers can of requested weights.
  std::int64_t blocks = std::min<std::int64_t>(tiles, std::int64_t{3} * device.sm_count);
  blocks = std::max(blocks, ceil_div(tiles, kFixedPointMaxTiles));
  return launch(fixed_point_kernel<T, Out, Epilogue>, dim3(static_cast<unsigned>(blocks)),
                kFixedPointThreads,
                fixed_point_shared_bytes(w.cols, static_cast<int>(ceil_div(tiles, blocks))), stream,
                static_cast<const T*>(x.data), w, y.data, epilogue);
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
