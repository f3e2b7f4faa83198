// The token kernel that times itself, with bf16 activations.
#include <cuda_bf16.h>

#include "examples/pythia/model/cuda_token_timed.cuh"

namespace pythia {

template cudaError_t launch_timed_token_kernel(const TokenParameters<__nv_bfloat16>&, int,
                                               WeightType, int, std::size_t, cudaStream_t);

}  // namespace pythia
