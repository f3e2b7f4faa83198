// Negative log-likelihood and argmax of each position, for perplexity.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "examples/pythia/model/cuda_reduce.cuh"

namespace pythia {

/// A sequence being scored. All device memory.
struct ScoredSequence {
  const std::int32_t* ids = nullptr;    ///< [*count]
  const std::int32_t* count = nullptr;  ///< one: it changes while a captured graph does not
  float* nll = nullptr;  ///< [*count]: nll[p] is of ids[p + 1]; the last one is not written
  std::int32_t* argmax = nullptr;  ///< [*count]: the most likely token after position p
};

/// Row r of logits belongs to position *step + r (or first + r where step is null). next_token,
/// when not null, receives the id after that of the last row: what a teacher-forced step feeds
/// next.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    nll_kernel(const float* logits, int vocab, ScoredSequence sequence, const std::int32_t* step,
               int first, std::int32_t* next_token) {
  const int position = (step == nullptr ? first : *step) + static_cast<int>(blockIdx.x);
  const int count = *sequence.count;
  if (position >= count) return;
  const float* row = logits + static_cast<std::int64_t>(blockIdx.x) * vocab;
  const Candidate best = block_argmax(row, vocab);
  float sum = 0.0f;
  for (int i = threadIdx.x; i < vocab; i += blockDim.x) sum += expf(row[i] - best.value);
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  sequence.argmax[position] = best.index;
  const bool has_target = position + 1 < count;
  if (has_target) {
    const float target = row[sequence.ids[position + 1]];
    sequence.nll[position] = logf(sum) + best.value - target;
  }
  if (next_token != nullptr && blockIdx.x + 1 == gridDim.x) {
    *next_token = sequence.ids[has_target ? position + 1 : position];
  }
}

/// Scores `rows` rows of logits [rows, vocab].
inline cudaError_t score_rows(const float* logits, int rows, int vocab, ScoredSequence sequence,
                              const std::int32_t* step, int first, std::int32_t* next_token,
                              cudaStream_t stream) {
  constexpr int kThreads = 512;
  nll_kernel<kThreads>
      <<<rows, kThreads, 0, stream>>>(logits, vocab, sequence, step, first, next_token);
  return cudaGetLastError();
}

}  // namespace pythia
