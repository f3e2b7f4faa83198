// How fast the device reads memory, measured where it is to be the measure of something.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/launch.cuh>
#include <waterweight/device_info.cuh>

#include "examples/pythia/model/cuda_check.hpp"
#include "examples/pythia/model/cuda_graph.hpp"

namespace pythia {

constexpr int kRoofPieceBytes = 8192;
constexpr int kRoofPieces = 24;  // on their way to an SM, whose shared memory that nearly fills

/// One thread per SM keeps a ring of bulk copies full; nobody looks at the bytes. Blocks take
/// pieces in turn, so that all of them walk through memory together.
static __global__ void __launch_bounds__(32)
    read_roof_kernel(const std::byte* data, std::int64_t pieces) {
  extern __shared__ __align__(128) std::byte roof_ring[];
  __shared__ __align__(8) std::uint64_t full[kRoofPieces];
  if (threadIdx.x != 0) return;
  for (std::uint64_t& barrier : full) waterweight::detail::mbarrier_init(&barrier, 1);
  waterweight::detail::mbarrier_init_fence();
  // One round of the ring more than there are pieces, so that all have come when the block ends.
  const std::int64_t own = (pieces - blockIdx.x + gridDim.x - 1) / gridDim.x;
  for (std::int64_t i = 0; i < own + kRoofPieces; ++i) {
    const auto slot = static_cast<int>(i % kRoofPieces);
    const std::int64_t lap = i / kRoofPieces;
    if (lap > 0 && i - kRoofPieces < own) {
      waterweight::detail::mbarrier_wait(full + slot, static_cast<std::uint32_t>(lap - 1) & 1);
    }
    if (i >= own) continue;
    waterweight::detail::mbarrier_arrive_expect(full + slot, kRoofPieceBytes);
    waterweight::detail::bulk_copy(roof_ring + slot * kRoofPieceBytes,
                                   data + (blockIdx.x + i * gridDim.x) * kRoofPieceBytes,
                                   kRoofPieceBytes, full + slot);
  }
}

/// Bytes per second of `bytes` at `data`, which should be many times what L2 holds; 0 on devices
/// before sm_90 or where the code was compiled for such.
inline double measure_read_roof(const waterweight::device_info& device, const std::byte* data,
                                std::size_t bytes, const CudaStream& stream) {
  constexpr int kRuns = 7;
  if (device.compute_capability < 90 || !waterweight::detail::compiled_for(90, read_roof_kernel)) {
    return 0.0;
  }
  const auto pieces = static_cast<std::int64_t>(bytes / kRoofPieceBytes);
  CudaEvent start(cudaEventDefault), stop(cudaEventDefault);
  double least = 0.0;
  for (int i = 0; i < kRuns; ++i) {
    start.record(stream.get());
    check_cuda(waterweight::detail::launch(
                   read_roof_kernel, dim3(static_cast<unsigned>(device.sm_count)), 32,
                   std::size_t{kRoofPieces} * kRoofPieceBytes, stream.get(), data, pieces),
               "read_roof_kernel");
    stop.record(stream.get());
    stop.synchronize();
    const double seconds = stop.seconds_since(start);
    least = i == 0 ? seconds : std::min(least, seconds);
  }
  return static_cast<double>(pieces) * kRoofPieceBytes / least;
}

}  // namespace pythia
