// Reductions over a thread block in a fixed order: the same bits from run to run.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pythia {

constexpr int kWarpSize = 32;
constexpr int kMaxWarps = 32;

/// A value and where it stood. `better` prefers the larger value, then the lower index; a NaN loses
/// to everything.
struct Candidate {
  float value;
  std::int32_t index;
};

__device__ __forceinline__ Candidate better(Candidate a, Candidate b) {
  const bool b_wins = b.value > a.value || (b.value == a.value && b.index < a.index) ||
                      (a.value != a.value && b.value == b.value);
  return b_wins ? b : a;
}

struct AddOp {
  __device__ float operator()(float a, float b) const { return a + b; }
};

/// combine() over the values of all threads, given to all of them. blockDim.x a multiple of 32.
/// `combine` must be commutative. Synchronises the block.
template <class V, class Combine, class Shuffle>
__device__ V block_reduce(V value, Combine combine, Shuffle shuffle) {
  __shared__ V partial[kMaxWarps];
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = combine(value, shuffle(value, offset));
  }
  const int warp = threadIdx.x / kWarpSize;
  __syncthreads();  // an earlier reduction's readers are done
  if (threadIdx.x % kWarpSize == 0) partial[warp] = value;
  __syncthreads();
  V result = partial[0];
  for (int i = 1; i < static_cast<int>(blockDim.x) / kWarpSize; ++i) {
    result = combine(result, partial[i]);
  }
  return result;
}

struct ShuffleFloat {
  __device__ float operator()(float value, int offset) const {
    return __shfl_xor_sync(0xffffffffu, value, offset);
  }
};

struct ShuffleCandidate {
  __device__ Candidate operator()(Candidate value, int offset) const {
    return {__shfl_xor_sync(0xffffffffu, value.value, offset),
            __shfl_xor_sync(0xffffffffu, value.index, offset)};
  }
};

struct BetterOp {
  __device__ Candidate operator()(Candidate a, Candidate b) const { return better(a, b); }
};

__device__ __forceinline__ float block_sum(float value) {
  return block_reduce(value, AddOp{}, ShuffleFloat{});
}

__device__ __forceinline__ Candidate block_best(Candidate value) {
  return block_reduce(value, BetterOp{}, ShuffleCandidate{});
}

/// The largest of `count` values and the lowest index that has it. A thread has many loads under
/// way: by 1024 threads, the 50304 logits of a sequence of Pythia take two memory latencies.
/// Sampling took 22 us on H200 with eight loads, 11 with 25.
__device__ __forceinline__ Candidate block_argmax(const float* values, int count) {
  constexpr int kAhead = 25;
  Candidate best{-INFINITY, INT32_MAX};
  const int threads = static_cast<int>(blockDim.x);
  for (int first = threadIdx.x; first < count; first += kAhead * threads) {
    float value[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int i = first + j * threads;
      value[j] = i < count ? values[i] : NAN;  // loses to everything
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) best = better(best, {value[j], first + j * threads});
  }
  best = block_best(best);
  if (best.index == INT32_MAX) best.index = 0;  // every value was NaN
  return best;
}

}  // namespace pythia
