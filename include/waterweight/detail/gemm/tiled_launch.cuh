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
  void* workspace;  ///< wgmma_workspace_bytes(SMs of the device)
  cudaStream_t stream;

  /// For rows that start anywhere.
  cudaError_t run_unaligned() const { return run<tiled_tile::m64_n64, false>(0, false); }

  /// x and w start, and so do their rows, on 16-byte boundaries.
  cudaError_t run(const device_info& device, tiled_plan plan) const {
    switch (plan.tile) {
      case tiled_tile::m64_n64:
        return run<tiled_tile::m64_n64, true>(device.sm_count, plan.shared);
      case tiled_tile::m128_n128:
        return run<tiled_tile::m128_n128, true>(device.sm_count, plan.shared);
      default:
        return run<tiled_tile::m128_n256, true>(device.sm_count, plan.shared);
    }
  }

 private:
  template <tiled_tile Tile, bool Aligned>
  cudaError_t run(int sms, bool shared) const {
    constexpr tiled_policy P = tiled_policy_of(Tile, sizeof(Element));
    static_assert(!P.persistent || P.block_m * P.block_n * sizeof(float) == kWgmmaSlotBytes,
                  "a tile's sums fill a slot");
    const std::int64_t m_tiles = ceil_div(x.rows, P.block_m), n_tiles = ceil_div(w.rows, P.block_n);
    const std::int64_t depth = ceil_div(w.cols, kTiledBlockK), tiles = m_tiles * n_tiles;
    if (tiles > std::numeric_limits<std::int32_t>::max()) return cudaErrorInvalidValue;
    // Blocks that share tiles wait for each other: all of them must be resident.
    const std::int64_t blocks =
        P.persistent ? std::min<std::int64_t>(shared ? tiles * depth : tiles, sms) : tiles;
    const bool vectors = is_aligned(y.data, 16) && y.ld * sizeof(Out) % 16 == 0;
    const tiled_output<Element, Out, Epilogue> output{
        w, y.data, y.ld, static_cast<int>(x.rows), vectors, epilogue};
    return launch(tiled_gemm_kernel<T, Element, Out, Epilogue, Tile, Aligned>,
                  dim3(static_cast<unsigned>(blocks)), P.threads(), P.shared_bytes(sizeof(Element)),
                  stream, x.data, x.ld, output,
                  make_tiled_schedule(m_tiles, n_tiles, depth, blocks, P.persistent && shared),
                  wgmma_parts{static_cast<std::byte*>(workspace)});
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
