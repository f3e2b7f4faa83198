// The token kernel that times itself, with fp16 activations.
#include <cuda_fp16.h>

#include "examples/pythia/model/cuda_token_timed.cuh"

namespace pythia {

template cudaError_t launch_timed_token_kernel(const TokenParameters<__half>&, int, WeightType, int,
                                               std::size_t, cudaStream_t);

}  // namespace pythia
