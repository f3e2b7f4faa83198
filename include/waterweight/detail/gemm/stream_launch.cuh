// Host side of the streaming kernel.
#pragma once

#include <waterweight/detail/gemm/stream_kernel.cuh>
#include <waterweight/detail/launch.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

template <class T, class Element, class Out, class Epilogue>
struct stream_launcher {
  matrix_view<const T> x;
  weight_operand<Element> w;
  matrix_view<Out> y;
  Epilogue epilogue;
  cudaStream_t stream;
  bool early;  ///< the kernel before writes neither weights nor scales

  /// Whether the device runs code that was compiled for sm_90 or newer.
  static bool present() { return compiled_for(90, kernel<1, stream_rows::whole>); }

  template <int NTiles>
  cudaError_t run(const stream_plan& plan) const {
    CUtensorMap w_map{};
    if (plan.boxes) {
      const auto encode = tma_encoder();
      constexpr std::int64_t kElement = sizeof(Element);
      if (encode == nullptr ||
          !tma_make_slab_map(encode, w.data, w.rows, w.ld * kElement, plan.cluster,
                             plan.chunks * kStreamChunk, kStreamTile, &w_map)) {
        return cudaErrorInvalidDeviceFunction;
      }
    }
    weight_operand<Element> parts = w;  // of rows, as rows
    parts.rows <<= plan.fold;
    parts.cols >>= plan.fold;
    parts.ld >>= plan.fold;
    return launch(kernel_for<NTiles>(plan.rows()),
                  dim3(static_cast<unsigned>(plan.cluster * plan.clusters)), kStreamThreads,
                  static_cast<std::size_t>(plan.shared_bytes(NTiles)),
                  launch_options{plan.cluster, true}, stream, x.data, x.ld, parts, y.data, y.ld,
                  static_cast<int>(x.rows), epilogue, plan, early, w_map);
  }

 private:
  template <int NTiles, stream_rows Rows>
  static constexpr auto kernel = stream_kernel<T, Element, Out, Epilogue, NTiles, Rows>;

  template <int NTiles>
  static auto kernel_for(stream_rows rows) {
    if (rows == stream_rows::slabs) return kernel<NTiles, stream_rows::slabs>;
    if constexpr (NTiles == 1 && sizeof(Element) == 1) {
      if (rows == stream_rows::parts) return kernel<NTiles, stream_rows::parts>;
    }
    return kernel<NTiles, stream_rows::whole>;
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
