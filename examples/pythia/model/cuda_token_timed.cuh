// Defines what cuda_token_timed.hpp declares.
#pragma once

#include "examples/pythia/model/cuda_token_dispatch.cuh"
#include "examples/pythia/model/cuda_token_kernel.cuh"
#include "examples/pythia/model/cuda_token_timed.hpp"

namespace pythia {

template <class T>
cudaError_t launch_timed_token_kernel(const TokenParameters<T>& p, int head_dim, WeightType weights,
                                      int blocks, std::size_t shared_bytes, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_token_kernel<T>(head_dim, p.hidden, weights, [&](auto dim, auto e, auto element) {
    constexpr int kDim = decltype(dim)::value, kE = decltype(e)::value;
    if constexpr (has_timed_token_kernel(kDim, kE * kTokenStagingThreads)) {
      status = launch_token_kernel<T, kDim, kE, decltype(element), TokenClock>(
          p, blocks, shared_bytes, stream);
    }
  });
  return status;
}

}  // namespace pythia
