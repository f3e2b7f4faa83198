// Host side of the wgmma kernel: whether the code is there, the tensor maps, the launch.
#pragma once

#include <algorithm>

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
  cudaError_t run(const device_info& device, const wgmma_plan& plan) const {
    const wgmma_start start =
        early_weights ? wgmma_start::weights_early : wgmma_start::after_earlier_kernels;
    const cudaError_t status =
        run(device, plan.first, 0, std::min<std::int64_t>(plan.rows, w.rows), start);
    if (status != cudaSuccess || plan.rows >= w.rows) return status;
    return run(device, plan.rest, plan.rows, w.rows - plan.rows, wgmma_start::beside_earlier);
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

  /// `count` rows of W from `first` on.
  cudaError_t run(const device_info& device, wgmma_cut cut, std::int64_t first, std::int64_t count,
                  wgmma_start start) const {
    const auto with = [&](auto tile) {
      constexpr wgmma_tile kTile = decltype(tile)::value;
      if constexpr (!wgmma_policy_of(kTile).takes(is_quantized_v<Element>)) {
        return cudaErrorInvalidDeviceFunction;
      } else {
        return run<kTile>(device, cut.splits, first, count, start);
      }
    };
    switch (cut.tile) {
      case wgmma_tile::rows64_tokens16:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows64_tokens16>{});
      case wgmma_tile::rows144_tokens16:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows144_tokens16>{});
      case wgmma_tile::rows192_tokens16:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows192_tokens16>{});
      case wgmma_tile::rows48_tokens32:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows48_tokens32>{});
      case wgmma_tile::rows64_tokens32:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows64_tokens32>{});
      case wgmma_tile::rows144_tokens32:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows144_tokens32>{});
      case wgmma_tile::rows128_tokens32:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows128_tokens32>{});
      case wgmma_tile::rows192_tokens32:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows192_tokens32>{});
      case wgmma_tile::rows128_tokens64:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows128_tokens64>{});
      case wgmma_tile::rows192_tokens64:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows192_tokens64>{});
      case wgmma_tile::rows128_tokens128:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows128_tokens128>{});
      case wgmma_tile::rows192_tokens128:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows192_tokens128>{});
      case wgmma_tile::rows128_tokens176:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows128_tokens176>{});
      case wgmma_tile::rows128_tokens88:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows128_tokens88>{});
      default:
        return with(std::integral_constant<wgmma_tile, wgmma_tile::rows128_tokens256>{});
    }
  }

  template <wgmma_tile Tile>
  cudaError_t run(const device_info& device, int wanted_splits, std::int64_t first,
                  std::int64_t count, wgmma_start start) const {
    constexpr wgmma_policy P = wgmma_policy_of(Tile);
    constexpr wgmma_layout L = wgmma_layout_of(P, sizeof(Element));
    const auto kernel = wgmma_gemm_kernel<T, Element, Out, Epilogue, Tile>;
    const auto encode = tma_encoder();
    if (encode == nullptr || !has_code(kernel)) return cudaErrorInvalidDeviceFunction;

    weight_operand<Element> part = w;
    part.data += first * w.ld;
    if (part.scale != nullptr) part.scale += first;
    part.rows = static_cast<int>(count);
    Out* const y_part = y.data + first;
    // Of Y, tokens of a chunk by 128 bytes of channels; where it cannot have a map any other does.
    // The copy engine writes whole 16 bytes: those behind a row's end too, if that is not at 16.
    const bool y_aligned =
        is_aligned(y_part, 16) && y.ld * sizeof(Out) % 16 == 0 && count * sizeof(Out) % 16 == 0;
    // Few tokens: a stage's rows of weights are 128 bytes. With the next 128 fetched too, more is
    // asked for at a time than memory serves best: 1 to 6 % longer at 16 tokens on H200.
    constexpr CUtensorMapL2promotion kPromotion =
        P.mma() ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    CUtensorMap w_map, x_map, y_map;
    if (!tma_make_map(encode, part.data, count, w.cols, w.ld, P.rows(),
                      static_cast<int>(L.w_bytes / P.rows() / sizeof(Element)), kPromotion,
                      &w_map) ||
        !tma_make_map(encode, x.data, x.rows, x.cols, x.ld, P.tokens / P.multicast, kWgmmaBlockK,
                      kPromotion, &x_map) ||
        (y_aligned && !tma_make_map(encode, y_part, y.rows, count, y.ld, P.chunk,
                                    static_cast<int>(128 / sizeof(Out)), kPromotion, &y_map))) {
      return cudaErrorInvalidDeviceFunction;
    }
    if (!y_aligned) y_map = x_map;

    const wgmma_output<Element, Out, Epilogue> output{
        part, y_part, y.ld, static_cast<int>(x.rows), y_aligned, static_cast<int>(first), epilogue};
    const int splits =
        static_cast<int>(std::min<std::int64_t>(wanted_splits, ceil_div(w.cols, L.stage_k())));
    const int cluster = splits > 1 ? splits : P.multicast;
    const std::int64_t units = ceil_div(x.rows, P.tokens) *
                               ceil_div(count, splits > 1 ? P.rows() : P.rows() * P.multicast);
    const std::int64_t resident =
        splits > 1
            ? units
            : std::min<std::int64_t>(units, std::max(P.residents * device.sm_count / cluster, 1));
    return launch(kernel, dim3(static_cast<unsigned>(cluster * resident)), P.threads(),
                  L.total + 1024, launch_options{cluster, true}, stream, w_map, x_map, y_map,
                  output, splits, start);
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
