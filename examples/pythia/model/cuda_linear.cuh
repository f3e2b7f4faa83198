// One linear layer through the library's GEMM, whatever its weights are stored as.
#pragma once

#include <cuda_runtime.h>

#include <waterweight/device/epilogue.cuh>
#include <waterweight/w8a16_gemm.cuh>

#include "examples/pythia/io/config.hpp"
#include "examples/pythia/model/cuda_check.hpp"
#include "examples/pythia/model/cuda_launch_log.hpp"
#include "examples/pythia/model/cuda_weights.hpp"

namespace pythia {

/// What every launch needs.
struct LaunchContext {
  waterweight::device_info device;
  waterweight::workspace workspace;
  cudaStream_t stream = nullptr;
  LaunchLog* log = nullptr;  ///< of a step that is being measured

  /// Does what launch() does, in a step that is being measured only if it is one of the first.
  /// bytes: what it must read and write at least.
  template <class Launch>
  void run(const char* kind, double bytes, const Launch& launch) const {
    if (log == nullptr || log->take(kind, bytes)) launch();
  }
};

/// What a product must move: weights, scales, biases, `rows` of input and of output.
template <class T>
double linear_bytes(const CudaLinear<T>& linear, int rows) {
  const double n = linear.n, k = linear.k;
  const double weights =
      linear.quantized != nullptr ? n * k + sizeof(float) * n : sizeof(T) * n * k;
  return weights + sizeof(T) * (linear.bias != nullptr ? n : 0) + sizeof(T) * rows * (n + k);
}

/// y[rows, n] = epilogue(x[rows, k] W^T). x and y are contiguous. Weights are never written after
/// loading, so they may be read early. One token and INT8 weights are multiplied in fixed point,
/// which gives the bits that the token kernel (cuda_token_kernel.cuh) gives. Throws Error.
template <class T, class Out, class Epilogue>
void apply_linear(const LaunchContext& launch, const CudaLinear<T>& linear, const T* x, int rows,
                  Out* y, Epilogue epilogue) {
  constexpr auto kEarly = waterweight::early_read::weights;
  const waterweight::matrix_view<const T> input{x, rows, linear.k, linear.k};
  const waterweight::matrix_view<Out> output{y, rows, linear.n, linear.n};
  if (linear.quantized != nullptr && rows == 1 && linear.k % 16 == 0 &&
      linear.k <= waterweight::kFixedPointGemvMaxK) {
    check_cuda(waterweight::w8a16_fixed_point_gemv(launch.device, input, linear.int8_view(), output,
                                                   epilogue, launch.stream),
               "w8a16_fixed_point_gemv");
  } else if (linear.quantized != nullptr) {
    check_cuda(waterweight::w8a16_gemm(launch.device, input, linear.int8_view(), output, epilogue,
                                       launch.workspace, launch.stream, kEarly),
               "w8a16_gemm");
  } else {
    check_cuda(waterweight::w16a16_gemm(launch.device, input, linear.view(), output, epilogue,
                                        launch.workspace, launch.stream, kEarly),
               "w16a16_gemm");
  }
}

/// y = x W^T + bias.
template <class T>
void apply_bias(const LaunchContext& launch, const CudaLinear<T>& linear, const T* x, int rows,
                T* y) {
  apply_linear(launch, linear, x, rows, y, waterweight::bias_epilogue<T>{linear.bias});
}

/// residual += x W^T + bias.
template <class T>
void apply_residual(const LaunchContext& launch, const CudaLinear<T>& linear, const T* x, int rows,
                    float* residual) {
  apply_linear(launch, linear, x, rows, residual,
               waterweight::bias_residual_epilogue<T, float>{linear.bias, residual, linear.n});
}

/// y = gelu(x W^T + bias).
template <class T>
void apply_gelu(const LaunchContext& launch, const CudaLinear<T>& linear, Activation activation,
                const T* x, int rows, T* y) {
  if (activation == Activation::gelu_tanh) {
    apply_linear(launch, linear, x, rows, y, waterweight::bias_gelu_tanh_epilogue<T>{linear.bias});
  } else {
    apply_linear(launch, linear, x, rows, y, waterweight::bias_gelu_erf_epilogue<T>{linear.bias});
  }
}

}  // namespace pythia
