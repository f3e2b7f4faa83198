// Vectors that carry their epoch, passed around between all blocks of a grid for many rounds.
#include <algorithm>
#include <vector>
#include <waterweight/device/flagged.cuh>

#include "tests/support/device.cuh"

namespace {

using test::DeviceBuffer;
using waterweight::flagged_word;

constexpr int kThreads = 64;
constexpr int kEach = 4;

/// In each round every block writes its `per_block` words, from the sum of all words of the round
/// before; two copies of the vector are used in turn. sums: [rounds, blocks].
__global__ void pass_around(flagged_word* vector, int per_block, int rounds, bool pairs,
                            std::uint32_t first_epoch, std::uint32_t* sums) {
  __shared__ std::uint32_t total;
  const int count = per_block * static_cast<int>(gridDim.x), thread = threadIdx.x;
  const auto present = [&](int words) { return (words - thread + kThreads - 1) / kThreads; };
  std::uint32_t seed = 1;
  for (int round = 0; round < rounds; ++round) {
    flagged_word* const copy = vector + round % 2 * count;
    const std::uint32_t epoch = first_epoch + round;
    if (thread < per_block) {
      const int i = blockIdx.x * per_block + thread;
      waterweight::store_flagged(copy + i, seed * 3 + i, epoch);
    }
    if (thread == 0) total = 0;
    __syncthreads();
    std::uint32_t own = 0;
    if (pairs) {
      uint2 words[kEach];
      waterweight::wait_flagged_pairs<kEach, kThreads>(copy + 2 * thread, present(count / 2), epoch,
                                                       words);
      for (const uint2& word : words) own += word.x + word.y;
    } else {
      waterweight::await_flagged(copy + min(thread, count - 1), epoch);
      std::uint32_t words[kEach];
      waterweight::wait_flagged<kEach, kThreads>(copy + thread, present(count), epoch, words);
      for (const std::uint32_t word : words) own += word;
    }
    atomicAdd(&total, own);
    __syncthreads();
    seed = total;
    if (thread == 0) sums[round * gridDim.x + blockIdx.x] = seed;
    __syncthreads();
  }
}

class Flagged : public test::GpuTest {};

TEST_F(Flagged, EveryBlockSeesEveryRound) {
  const int per_block = 4, rounds = 200;
  const int blocks = std::min(device.sm_count, kThreads * kEach / per_block);
  const auto count = static_cast<std::size_t>(per_block * blocks);
  DeviceBuffer<flagged_word> vector(std::vector<flagged_word>(2 * count, make_uint2(7, 0)));
  DeviceBuffer<std::uint32_t> sums(static_cast<std::size_t>(rounds * blocks));
  for (int run = 0; run < 2; ++run) {
    const bool pairs = run == 1;
    sums.poison();
    void* data = vector.data();
    void* out = sums.data();
    int words = per_block, round_count = rounds;
    bool in_pairs = pairs;
    std::uint32_t epoch = 1 + static_cast<std::uint32_t>(run * rounds);
    void* arguments[] = {&data, &words, &round_count, &in_pairs, &epoch, &out};
    ASSERT_CUDA(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(pass_around),
                                            dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                                            arguments, 0, stream));
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    const std::vector<std::uint32_t> found = sums.download();
    std::uint32_t seed = 1;
    for (int round = 0; round < rounds; ++round) {
      std::uint32_t total = 0;
      for (std::uint32_t i = 0; i < count; ++i) total += seed * 3 + i;
      seed = total;
      for (int block = 0; block < blocks; ++block) {
        ASSERT_EQ(found[static_cast<std::size_t>(round * blocks + block)], seed)
            << "round " << round << ", block " << block << (pairs ? ", pairs" : "");
      }
    }
  }
}

}  // namespace
