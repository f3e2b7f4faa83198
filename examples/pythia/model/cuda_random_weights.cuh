// Random weights made where they are needed: the same values as RandomWeights reads on the host.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "examples/pythia/model/random_weight_values.hpp"

namespace pythia {

/// out[i] = the value that element first + i's random word picks.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    random_weights_kernel(std::uint32_t stream_id, std::int64_t first, std::int64_t count,
                          const __half* values, __half* out) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const std::int64_t element = first + i;
    const PhiloxBlock block = random_weight_block(stream_id, element / 4);
    const int word_index = static_cast<int>(element % 4);
    const std::uint32_t word = word_index == 0   ? block.word[0]
                               : word_index == 1 ? block.word[1]
                               : word_index == 2 ? block.word[2]
                                                 : block.word[3];
    out[i] = values[random_weight_index(word)];
  }
}

}  // namespace pythia
