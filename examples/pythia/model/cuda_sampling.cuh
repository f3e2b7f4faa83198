// The next token of each sequence, chosen on the device by the rule of host_sampler.hpp.
//
// top_k and top_p need no sorting: tokens are ranked by a 64-bit key (logit first, then the lower
// id), and a radix search finds the key at which the count, or the probability mass, of all keys
// from the top down reaches its target. Masses are integers (units of 2^-40 of the largest), so
// their sums do not depend on the order of the atomic additions.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/launch.cuh>

#include "examples/pythia/model/cuda_reduce.cuh"
#include "examples/pythia/model/engine.hpp"
#include "examples/pythia/model/philox.hpp"

namespace pythia {

constexpr int kSamplingThreads = 1024;
constexpr int kRadix = 256;
constexpr int kRankBits = 56;                  // 32 of the logit, 24 of the id
constexpr double kMassUnit = 1099511627776.0;  // 2^40

/// Where sampled tokens go, and what is asked. All device-visible memory.
struct SamplingTarget {
  const SamplingOptions* options = nullptr;  ///< one; vocab_limit already resolved
  std::int32_t* tokens = nullptr;            ///< [batch]: fed by this step, then by the next
  std::int32_t* seen =
      nullptr;        ///< [seen_rows, batch] host memory: the same, -1 if no finite logit
  int seen_rows = 1;  ///< a token goes to the row of its position modulo this

  __device__ __forceinline__ void put(int sequence, int batch, int position, int token,
                                      bool finite) const {
    const std::int32_t fed = tokens[sequence];
    if (options->stops_at(fed)) {
      token = fed;
      finite = true;
    }
    tokens[sequence] = token;
    seen[position % seen_rows * batch + sequence] = finite ? token : -1;
  }
};

__device__ __forceinline__ float rank_value(float logit) {
  return logit == logit ? logit : -INFINITY;
}

/// Larger for a larger logit, then for a lower id. 0 is below every rank.
__device__ __forceinline__ std::uint64_t token_rank(float logit, int id) {
  const float value = rank_value(logit) + 0.0f;  // -0 ranks as 0
  const std::uint32_t bits = __float_as_uint(value);
  const std::uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<std::uint64_t>(ordered) << 24) | (0xffffffu - static_cast<std::uint32_t>(id));
}

/// The rank of the token at which weight(id, rank), summed from the highest rank down, reaches
/// `target` (1 <= target <= the sum of all). Called by the whole block.
template <class Weight>
__device__ std::uint64_t rank_reaching(const float* logits, int count, std::uint64_t target,
                                       const Weight& weight) {
  __shared__ unsigned long long histogram[kRadix];
  __shared__ std::uint64_t chosen_prefix;
  __shared__ std::uint64_t remaining;
  __shared__ bool whole_bucket;
  std::uint64_t prefix = 0;
  for (int shift = kRankBits - 8; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < kRadix; i += blockDim.x) histogram[i] = 0;
    __syncthreads();
    for (int id = threadIdx.x; id < count; id += blockDim.x) {
      const std::uint64_t rank = token_rank(logits[id], id);
      if (rank >> (shift + 8) != prefix) continue;
      atomicAdd(&histogram[rank >> shift & (kRadix - 1)],
                static_cast<unsigned long long>(weight(id, rank)));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      std::uint64_t above = 0;
      int digit = kRadix - 1;
      while (digit > 0 && above + histogram[digit] < target) above += histogram[digit--];
      chosen_prefix = prefix << 8 | static_cast<std::uint64_t>(digit);
      remaining = target - above;
      whole_bucket = remaining == histogram[digit];
    }
    __syncthreads();
    prefix = chosen_prefix;
    target = remaining;
    const bool done = whole_bucket;
    __syncthreads();
    if (done) return prefix << shift;  // everything in the bucket is in: its lowest rank will do
  }
  return prefix;
}

struct CountWeight {
  __device__ std::uint64_t operator()(int, std::uint64_t) const { return 1; }
};

/// exp((logit - best) / temperature) of the tokens from `lowest` up.
struct MassWeight {
  const float* logits;
  float best;
  float temperature;
  std::uint64_t lowest;

  __device__ std::uint64_t operator()(int id, std::uint64_t rank) const {
    if (rank < lowest) return 0;
    const float exponent = (rank_value(logits[id]) - best) / temperature;
    return static_cast<std::uint64_t>(
        __double2ull_rn(exp(static_cast<double>(exponent)) * kMassUnit));
  }
};

/// The sum of all masses. Called by the whole block.
__device__ inline std::uint64_t total_mass(int count, const float* logits, const MassWeight& mass) {
  __shared__ unsigned long long total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  unsigned long long own = 0;
  for (int id = threadIdx.x; id < count; id += blockDim.x) {
    own += mass(id, token_rank(logits[id], id));
  }
  atomicAdd(&total, own);
  __syncthreads();
  return total;
}

/// The lowest rank that top_k and top_p leave. Called by the whole block.
__device__ inline std::uint64_t lowest_candidate(const float* logits, int count, float best,
                                                 const SamplingOptions& options) {
  std::uint64_t lowest = 0;
  if (options.top_k > 0 && options.top_k < count) {
    lowest = rank_reaching(logits, count, static_cast<std::uint64_t>(options.top_k), CountWeight{});
  }
  if (options.top_p < 1.0f) {
    const MassWeight mass{logits, best, options.temperature, lowest};
    const auto total = static_cast<double>(total_mass(count, logits, mass));
    const double target = ceil(static_cast<double>(options.top_p) * total);
    const auto units = static_cast<std::uint64_t>(target < 1.0 ? 1.0 : target);
    const std::uint64_t of_mass = rank_reaching(logits, count, units, mass);
    lowest = of_mass > lowest ? of_mass : lowest;
  }
  return lowest;
}

/// One block per sequence. positions[b] + offset is the position the sampled token will take.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    sampling_kernel(const float* logits, int vocab, const std::int32_t* positions, int offset,
                    SamplingTarget target) {
  waterweight::detail::follow_earlier_kernels();
  const int sequence = blockIdx.x;
  const float* row = logits + static_cast<std::int64_t>(sequence) * vocab;
  const int count = target.options->vocab_limit;
  const bool draws = target.options->temperature > 0.0f;
  const Candidate best = block_argmax(row, count);
  Candidate chosen = best;
  const int position = positions[sequence] + offset;
  if (draws && isfinite(best.value)) {
    const SamplingOptions options = *target.options;  // only now: block_argmax needs the registers
    const std::uint64_t lowest = lowest_candidate(row, count, best.value, options);
    chosen = {-INFINITY, INT32_MAX};
    for (int id = threadIdx.x; id < count; id += blockDim.x) {
      if (token_rank(row[id], id) < lowest) continue;
      const float u = sampling_uniform(options.seed, sequence, position, id);
      const float noise = -logf(-logf(u));
      chosen =
          better(chosen, {(rank_value(row[id]) - best.value) / options.temperature + noise, id});
    }
    chosen = block_best(chosen);
  }
  if (threadIdx.x != 0) return;
  target.put(sequence, static_cast<int>(gridDim.x), position, chosen.index, isfinite(best.value));
}

/// Samples from `batch` rows of logits [batch, vocab].
inline cudaError_t sample(const float* logits, int batch, int vocab, const std::int32_t* positions,
                          int offset, const SamplingTarget& target, cudaStream_t stream) {
  return waterweight::detail::launch_following(sampling_kernel<kSamplingThreads>,
                                               static_cast<unsigned>(batch), kSamplingThreads, 0,
                                               stream, logits, vocab, positions, offset, target);
}

}  // namespace pythia
