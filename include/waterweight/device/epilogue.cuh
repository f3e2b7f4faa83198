// Epilogue functors: what happens to one fp32 accumulator between the sum over K and the store.
//
// A functor is called as `float operator()(float acc, int m, int n)` for element (m, n) of
// Y[M, N], acc already multiplied by the channel's scale; what it returns is rounded to the output
// type and stored. It is copied to the device by value. Any user type of that form works.
#pragma once

#include <cstdint>

#include <waterweight/config.hpp>
#include <waterweight/detail/arch/convert.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// GELU(x) = x * Phi(x), the erf form (Hugging Face "gelu"), to 1.2e-7 absolutely, in fewer
/// instructions than by erff. max(x, 0) - |x| Phi(-|x|), where log2 Phi(-t) is close to a
/// polynomial; from t = 6 on that part is below 1e-8.
__device__ __forceinline__ float gelu_erf(float x) {
  const float t = fminf(fabsf(x), 6.0f);
  float log_phi = 3.47401474e-5f;
  log_phi = fmaf(log_phi, t, -7.81711075e-4f);
  log_phi = fmaf(log_phi, t, 8.1144236e-3f);
  log_phi = fmaf(log_phi, t, -5.3450916e-2f);
  log_phi = fmaf(log_phi, t, -4.58753943e-1f);
  log_phi = fmaf(log_phi, t, -1.15120244f);
  log_phi = fmaf(log_phi, t, -9.99993622e-1f);
  const float part = t * detail::fast_exp2(log_phi);
  return fmaf(0.5f, x, fmaf(0.5f, fabsf(x), -part));
}

/// The tanh approximation of GELU (Hugging Face "gelu_new", "gelu_fast", "gelu_pytorch_tanh").
__device__ __forceinline__ float gelu_tanh(float x) {
  const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + tanhf(inner));
}

/// Y = X W^T.
struct identity_epilogue {
  __device__ float operator()(float acc, int, int) const { return acc; }
};

/// Y = X W^T + bias. bias: [N] of T.
template <class T>
struct bias_epilogue {
  const T* bias;
  __device__ float operator()(float acc, int, int n) const {
    return acc + detail::to_float(bias[n]);
  }
};

/// Y = gelu_erf(X W^T + bias). bias: [N] of T.
template <class T>
struct bias_gelu_erf_epilogue {
  const T* bias;
  __device__ float operator()(float acc, int, int n) const {
    return gelu_erf(acc + detail::to_float(bias[n]));
  }
};

/// Y = gelu_tanh(X W^T + bias). bias: [N] of T.
template <class T>
struct bias_gelu_tanh_epilogue {
  const T* bias;
  __device__ float operator()(float acc, int, int n) const {
    return gelu_tanh(acc + detail::to_float(bias[n]));
  }
};

/// Y = residual + X W^T + bias. bias: [N] of T; residual: [M, N] of R, rows `ld` apart. The
/// residual may be Y itself: each element is read and written by the same thread.
template <class T, class R>
struct bias_residual_epilogue {
  const T* bias;
  const R* residual;
  std::int64_t ld;
  __device__ float operator()(float acc, int m, int n) const {
    return acc + detail::to_float(bias[n]) + detail::to_float(residual[m * ld + n]);
  }
};

WATERWEIGHT_ARCH_NAMESPACE_END
