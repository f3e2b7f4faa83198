// What this card can do today, measured in the process that uses it as the measure: a percentage of
// a datasheet would hide the card's state.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include <waterweight/types.hpp>

#include "bench/harness/cublas.hpp"

namespace bench {

struct Roofs {
  double bulk_read = 0;   ///< bytes/s by 1-D bulk copies into shared memory; 0 where not compiled
  double plain_read = 0;  ///< bytes/s by 16-byte loads
  double copy = 0;        ///< bytes/s read plus written by a device-to-device copy
  double matrix = 0;      ///< FLOP/s of an FP16 GEMM by cuBLAS, 8192 cubed; 0 without cuBLAS

  double read() const { return bulk_read > plain_read ? bulk_read : plain_read; }
};

/// Takes about a second and, while it runs, 2.5 GB of device memory.
Roofs measure_roofs(const waterweight::device_info& device, Cublas& cublas, cudaStream_t stream);

/// Which code of this program the device runs: "sm_90 machine code" or "compute_80 PTX, compiled by
/// the driver".
std::string running_code();

}  // namespace bench
