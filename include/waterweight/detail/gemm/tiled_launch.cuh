// Host side of the tiled kernel.
#pragma once

#include <algorithm>
#include <limits>

#include <waterweight/detail/gemm/tiled_kernel.cuh>
#include <waterweight/detail/launch.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

template <class T, class Element, class Out, class Epilogue>
struct tiled_launcher {
  matrix_view<const T> x;
  weight_operand<Element> w;
  matrix_view<Out> y;
  Epilogue epilogue;
  void* workspace;
  cudaStream_t stream;

  /// Aligned: x and w start, and so do their rows, on 16-byte boundaries. plan: for Tile.
  template <tiled_tile Tile, bool Aligned>
  cudaError_t run(const tiled_plan& plan) const {
    constexpr tiled_policy P = tiled_policy_of(Tile, sizeof(Element));
    const std::int64_t tiles = ceil_div(x.rows, P.block_m) * ceil_div(w.rows, P.block_n);
    const std::int64_t whole = std::min(plan.whole, tiles);
    const std::int64_t blocks = whole + (tiles - whole) * plan.splits;
    if (blocks > std::numeric_limits<std::int32_t>::max()) return cudaErrorInvalidValue;
    const bool vectors = is_aligned(y.data, 16) && y.ld * sizeof(Out) % 16 == 0;
    const tiled_output<Element, Out, Epilogue> output{
        w, y.data, y.ld, static_cast<int>(x.rows), vectors, epilogue};
    return launch(
        tiled_gemm_kernel<T, Element, Out, Epilogue, Tile, Aligned>,
        dim3(static_cast<unsigned>(blocks)), P.threads(), P.shared_bytes(sizeof(Element)), stream,
        x.data, x.ld, output,
        tiled_parts{static_cast<std::byte*>(workspace), static_cast<int>(whole), plan.splits});
  }

  cudaError_t run(const tiled_plan& plan) const {
    switch (plan.tile) {
      case tiled_tile::m64_n64:
        return run<tiled_tile::m64_n64, true>(plan);
      case tiled_tile::m128_n128:
        return run<tiled_tile::m128_n128, true>(plan);
      default:
        return run<tiled_tile::m128_n256, true>(plan);
    }
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
