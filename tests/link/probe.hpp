// Two copies of probe.cu, built for different architectures, answer which code ran.
#pragma once

namespace link_test {

struct Probe {
  int status = 0;  ///< the first CUDA error, 0 for none
  int arch = 0;    ///< __CUDA_ARCH__ of the device code that ran
};

/// Runs the library's GEMM on `rows` rows of activations (few and many take different kernels).
Probe probe_compute_80(int rows);
Probe probe_sm_90(int rows);

}  // namespace link_test
