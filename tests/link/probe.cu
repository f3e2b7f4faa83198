// Compiled twice, once per architecture, with PROBE_FUNCTION naming what this copy defines. Both
// copies instantiate the same templates with the same types: only the library's namespaces keep the
// linker from handing one copy the other's kernel.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <waterweight/device_info.cuh>
#include <waterweight/quantize.cuh>
#include <waterweight/w8a16_gemm.cuh>

#include "tests/link/probe.hpp"

namespace link_test {

struct arch_epilogue {
  __device__ float operator()(float, int, int) const {
#if defined(__CUDA_ARCH__)
    return __CUDA_ARCH__;
#else
    return 0.0f;
#endif
  }
};

Probe PROBE_FUNCTION(int rows) {
  namespace ww = waterweight;
  constexpr int n = 64, k = 64;

  // One allocation for everything the call reads and writes; all of it may be zeros.
  struct Buffers {
    __half x[256 * k];
    float y[256 * n];
    __half w[n * k];
    std::int8_t q[n * k];
    float scale[n];
    int bad_rows;
  };
  Buffers* buffers = nullptr;
  ww::device_info device;
  void* scratch = nullptr;
  float y = 0.0f;

  cudaError_t status = ww::query_device(&device, 0);
  if (status == cudaSuccess) status = cudaMalloc(&buffers, sizeof(Buffers));
  if (status == cudaSuccess) status = cudaMemset(buffers, 0, sizeof(Buffers));
  const std::size_t scratch_bytes = ww::w8a16_gemm_workspace_bytes(rows, n, k, device);
  if (status == cudaSuccess) status = cudaMalloc(&scratch, scratch_bytes);
  if (status == cudaSuccess) status = cudaMemset(scratch, 0, scratch_bytes);

  if (status == cudaSuccess) {
    const ww::mutable_int8_weight_view q{buffers->q, buffers->scale, n, k, k};
    const ww::matrix_view<__half> w{buffers->w, n, k, k};
    status = ww::quantize_per_channel(w, q, &buffers->bad_rows, nullptr);
    if (status == cudaSuccess) {
      const ww::matrix_view<__half> x{buffers->x, rows, k, k};
      const ww::matrix_view<float> out{buffers->y, rows, n, n};
      status =
          ww::w8a16_gemm(device, x, q, out, arch_epilogue{}, {scratch, scratch_bytes}, nullptr);
    }
  }
  if (status == cudaSuccess) {
    status = cudaMemcpy(&y, buffers->y, sizeof(y), cudaMemcpyDeviceToHost);
  }
  cudaFree(scratch);
  cudaFree(buffers);
  return {static_cast<int>(status), static_cast<int>(y)};
}

}  // namespace link_test
