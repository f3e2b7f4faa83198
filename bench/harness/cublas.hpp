// cuBLAS as the yardstick, where CMake found it; elsewhere available() is false and nothing links
// it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "bench/harness/device_buffer.cuh"

#ifdef WATERWEIGHT_BENCH_CUBLAS
#include <cublas_v2.h>
#endif

namespace bench {

#ifdef WATERWEIGHT_BENCH_CUBLAS

class Cublas {
 public:
  static bool available() { return true; }

  explicit Cublas(cudaStream_t stream) : workspace_(std::size_t{64} << 20) {
    if (cublasCreate(&handle_) != CUBLAS_STATUS_SUCCESS) {
      throw std::runtime_error("cublasCreate failed");
    }
    cublasSetStream(handle_, stream);
    // After the stream, which resets it. A workspace of one's own lets calls be captured.
    cublasSetWorkspace(handle_, workspace_.data(), workspace_.bytes());
  }
  ~Cublas() { cublasDestroy(handle_); }
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  /// y[m, n] = sum over k of x[m, k] * w[n, k], all row-major and dense, fp32 compute type, the
  /// algorithm that cuBLAS chooses. T: __half or __nv_bfloat16.
  template <class T>
  cudaError_t gemm(const T* x, const T* w, T* y, int m, int n, int k) {
    constexpr cudaDataType_t type = std::is_same_v<T, __half> ? CUDA_R_16F : CUDA_R_16BF;
    const float one = 1, zero = 0;
    // Row-major is the transpose in cuBLAS's column-major eyes: Y^T = W X^T.
    const cublasStatus_t status =
        cublasGemmEx(handle_, CUBLAS_OP_T, CUBLAS_OP_N, n, m, k, &one, w, type, k, x, type, k,
                     &zero, y, type, n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    return status == CUBLAS_STATUS_SUCCESS ? cudaSuccess : cudaErrorUnknown;
  }

 private:
  DeviceBuffer<char> workspace_;
  cublasHandle_t handle_ = nullptr;
};

#else

class Cublas {
 public:
  static bool available() { return false; }

  explicit Cublas(cudaStream_t) {}

  template <class T>
  cudaError_t gemm(const T*, const T*, T*, int, int, int) {
    return cudaErrorNotSupported;
  }
};

#endif

}  // namespace bench
