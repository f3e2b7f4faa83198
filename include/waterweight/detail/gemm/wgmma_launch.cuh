// Host side of the wgmma kernel: whether the code is there, the tensor maps, the launch.
#pragma once

#include <waterweight/detail/gemm/wgmma_kernel.cuh>
#include <waterweight/detail/launch.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

template <class T, class Element, class Out, class Epilogue>
struct wgmma_launcher {
  matrix_view<const T> x;
  weight_operand<Element> w;
  matrix_view<Out> y;
  Epilogue epilogue;
  cudaStream_t stream;
  bool early_weights;  ///< see wgmma_gemm_kernel

  /// Whether the current device runs code that was compiled for sm_90a.
  static bool present() {
    return has_code(wgmma_gemm_kernel<T, Element, Out, Epilogue, wgmma_tile::rows128_tokens256>);
  }

  /// x and w start, and so do their rows, on 16-byte boundaries. cudaErrorInvalidDeviceFunction:
  /// the code that this device runs was not compiled for sm_90a, or its driver has no tensor maps
  /// for these operands; nothing was launched.
  cudaError_t run(const device_info& device, wgmma_plan plan) const {
    switch (plan.tile) {
      case wgmma_tile::rows128_tokens64:
        return run<wgmma_tile::rows128_tokens64>(device, plan.splits);
      case wgmma_tile::rows192_tokens64:
        return run<wgmma_tile::rows192_tokens64>(device, plan.splits);
      case wgmma_tile::rows128_tokens128:
        return run<wgmma_tile::rows128_tokens128>(device, plan.splits);
      case wgmma_tile::rows192_tokens128:
        return run<wgmma_tile::rows192_tokens128>(device, plan.splits);
      case wgmma_tile::rows128_tokens176:
        return run<wgmma_tile::rows128_tokens176>(device, plan.splits);
      case wgmma_tile::rows128_tokens88:
        return run<wgmma_tile::rows128_tokens88>(device, plan.splits);
      case wgmma_tile::x64:
        return run<wgmma_tile::x64>(device, plan.splits);
      case wgmma_tile::x128:
        return run<wgmma_tile::x128>(device, plan.splits);
      case wgmma_tile::y128:
        return run<wgmma_tile::y128>(device, plan.splits);
      default:
        return run<wgmma_tile::rows128_tokens256>(device, plan.splits);
    }
  }

 private:
  /// Only the code for sm_90a has static shared memory.
  template <class... Parameters>
  static bool has_code(void (*kernel)(Parameters...)) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)) ==
               cudaSuccess &&
           attributes.sharedSizeBytes > 0;
  }

  template <wgmma_tile Tile>
  cudaError_t run(const device_info& device, int wanted_splits) const {
    constexpr wgmma_policy P = wgmma_policy_of(Tile);
    constexpr wgmma_layout L = wgmma_layout_of(P, sizeof(Element));
    const auto kernel = wgmma_gemm_kernel<T, Element, Out, Epilogue, Tile>;
    const auto encode = tma_encoder();
    if (encode == nullptr || !has_code(kernel)) return cudaErrorInvalidDeviceFunction;

    // Of Y, tokens of a chunk by 128 bytes of channels; where it cannot have a map any other does.
    const bool y_aligned = is_aligned(y.data, 16) && y.ld * sizeof(Out) % 16 == 0;
    CUtensorMap w_map, x_map, y_map;
    if (!tma_make_map(encode, w.data, w.rows, w.cols, w.ld, P.rows(),
                      static_cast<int>(L.w_bytes / P.rows() / sizeof(Element)), &w_map) ||
        !tma_make_map(encode, x.data, x.rows, x.cols, x.ld, P.tokens / P.multicast, kWgmmaBlockK,
                      &x_map) ||
        (y_aligned && !tma_make_map(encode, y.data, y.rows, y.cols, y.ld, P.chunk,
                                    static_cast<int>(128 / sizeof(Out)), &y_map))) {
      return cudaErrorInvalidDeviceFunction;
    }
    if (!y_aligned) y_map = x_map;

    const wgmma_output<Element, Out, Epilogue> output{
        w, y.data, y.ld, static_cast<int>(x.rows), y_aligned, epilogue};
    const int splits = static_cast<int>(
        std::min<std::int64_t>(wanted_splits, ceil_div(w.cols, L.stage_k())));
    const int cluster = splits > 1 ? splits : P.multicast;
    const std::int64_t units =
        ceil_div(x.rows, P.tokens) *
        ceil_div(w.rows, splits > 1 ? P.rows() : P.rows() * P.multicast);
    const std::int64_t resident =
        splits > 1 ? units : std::min<std::int64_t>(units, std::max(device.sm_count / cluster, 1));
    return launch(kernel, dim3(static_cast<unsigned>(cluster * resident)), P.threads(),
                  L.total + 1024, launch_options{cluster, true}, stream, w_map, x_map, y_map,
                  output, splits, early_weights);
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
