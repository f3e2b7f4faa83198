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
  void* workspace;  ///< wgmma_workspace_bytes(SMs of the device)
  cudaStream_t stream;

  /// Whether the current device runs code that was compiled for sm_90a.
  static bool present() {
    return has_code(wgmma_gemm_kernel<T, Element, Out, Epilogue, wgmma_tile::rows128_tokens256>);
  }

  /// x and w start, and so do their rows, on 16-byte boundaries. cudaErrorInvalidDeviceFunction:
  /// the code that this device runs was not compiled for sm_90a, or its driver has no tensor maps
  /// for these operands; nothing was launched.
  cudaError_t run(const device_info& device, wgmma_plan plan) const {
    switch (plan.tile) {
      case wgmma_tile::rows128_tokens256:
        return run<wgmma_tile::rows128_tokens256>(device, plan.splits);
      case wgmma_tile::rows192_tokens128:
        return run<wgmma_tile::rows192_tokens128>(device, plan.splits);
      case wgmma_tile::split_rows128_tokens128:
        return run<wgmma_tile::split_rows128_tokens128>(device, plan.splits);
      default:
        return run<wgmma_tile::split_rows128_tokens64>(device, plan.splits);
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
  cudaError_t run(const device_info& device, int splits) const {
    constexpr wgmma_policy P = wgmma_policy_of(Tile);
    constexpr wgmma_layout L = wgmma_layout_of(P, sizeof(Element));
    const auto kernel = wgmma_gemm_kernel<T, Element, Out, Epilogue, Tile>;
    const auto encode = tma_encoder();
    if (encode == nullptr || !has_code(kernel)) return cudaErrorInvalidDeviceFunction;

    CUtensorMap w_map, x_map;
    if (!tma_make_map(encode, w.data, w.rows, w.cols, w.ld, P.rows(), &w_map) ||
        !tma_make_map(encode, x.data, x.rows, x.cols, x.ld, P.tokens / P.multicast, &x_map)) {
      return cudaErrorInvalidDeviceFunction;
    }

    const bool pairs = is_aligned(y.data, 2 * sizeof(Out)) && y.ld % 2 == 0;
    const wgmma_output<Element, Out, Epilogue> output{
        w, y.data, y.ld, static_cast<int>(x.rows), pairs, epilogue};
    const std::int64_t units =
        ceil_div(x.rows, P.tokens) * ceil_div(w.rows, P.rows() * P.multicast);
    const int cluster = P.persistent ? P.multicast : splits;
    // A persistent cluster's share may be as little as a stage of K.
    const std::int64_t work =
        P.persistent && splits > 1 ? units * ceil_div(w.cols, L.stage_k()) : units;
    const std::int64_t resident = P.persistent ? std::max(device.sm_count / cluster, 1) : units;
    const std::int64_t blocks = cluster * std::min(work, resident);
    // Where two blocks fit on an SM, an early grid would fill some SMs with two and leave others
    // idle.
    const launch_options options{cluster, P.blocks_per_sm == 1};
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), P.threads(), L.total + 1024, options,
                  stream, w_map, x_map, output, wgmma_parts{static_cast<std::byte*>(workspace)},
                  splits);
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
