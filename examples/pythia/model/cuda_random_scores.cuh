// Writes the draws of Policy::random where H2O reads scores.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "examples/pythia/model/random_scores.hpp"

namespace pythia {

/// Scores of `layers` layers from `first_layer` on, [batch, heads, columns] each, layer_stride
/// heads apart. position, laid out alike, names the key of a column, negative: none; null: column c
/// is key c.
struct ScoreColumns {
  float* score = nullptr;
  const std::int32_t* position = nullptr;
  int first_layer = 0;
  int layers = 1;
  std::int64_t layer_stride = 0;
  int batch = 0;
  int heads = 0;
  int columns = 0;
};

constexpr int kRandomScoreThreads = 256;

/// One block per (layer, sequence, head).
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    random_scores_kernel(RandomScores draw, ScoreColumns target) {
  const int per_layer = target.batch * target.heads;
  const int layer = static_cast<int>(blockIdx.x) / per_layer;
  const int row = static_cast<int>(blockIdx.x) % per_layer;
  const std::int64_t first = (layer * target.layer_stride + row) * target.columns;
  for (int column = threadIdx.x; column < target.columns; column += blockDim.x) {
    const std::int32_t position =
        target.position == nullptr ? column : target.position[first + column];
    if (position < 0) continue;
    target.score[first + column] = draw(target.first_layer + layer, row % target.heads, position);
  }
}

inline cudaError_t write_random_scores(const RandomScores& draw, const ScoreColumns& target,
                                       cudaStream_t stream) {
  const int blocks = target.layers * target.batch * target.heads;
  random_scores_kernel<kRandomScoreThreads>
      <<<blocks, kRandomScoreThreads, 0, stream>>>(draw, target);
  return cudaGetLastError();
}

}  // namespace pythia
