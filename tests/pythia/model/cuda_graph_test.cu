// Branches of a captured sequence: what follows what, and that nothing starts too soon.
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>
#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/launch.cuh>

#include "examples/pythia/model/cuda_graph.hpp"
#include "tests/support/device.cuh"

namespace {

using pythia::CudaGraph;
using pythia::SideStream;
using test::DeviceBuffer;

constexpr int kLayers = 12, kThreads = 256, kCount = 300 * kThreads + 77;

/// to = factor * a + b. The blocks take their time, some of them more.
__global__ void combine_kernel(std::uint32_t* to, std::uint32_t factor, const std::uint32_t* a,
                               const std::uint32_t* b) {
  waterweight::detail::follow_earlier_kernels();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= kCount) return;
  const std::uint32_t sum = factor * a[i] + b[i];
  for (long long end = clock64() + 1500 * (blockIdx.x % 5); clock64() < end;) {
  }
  to[i] = sum;
}

class CudaGraphTest : public test::GpuTest {
 protected:
  /// A chain of layers, each of them x = 3 x + y, then z = 5 x + z beside y = 7 x + z, with y and z
  /// of the layer before. In the end x, y and z lie behind one another.
  static void enqueue(std::uint32_t* x, SideStream* side, cudaStream_t main, bool early) {
    std::uint32_t* const y = x + kCount;
    std::array<std::uint32_t*, 2> z = {y + kCount, y + 2 * kCount};
    for (int layer = 0; layer < kLayers; ++layer) {
      combine(x, 3, x, y, main);
      side->fork(main, early);
      combine(y, 7, x, z[0], side->get());
      combine(z[1], 5, x, z[0], main);
      side->join(main);
      std::swap(z[0], z[1]);
    }
  }

 private:
  static void combine(std::uint32_t* to, std::uint32_t factor, const std::uint32_t* a,
                      const std::uint32_t* b, cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>((kCount + kThreads - 1) / kThreads);
    ASSERT_EQ(cudaSuccess,
              waterweight::detail::launch_following(combine_kernel, dim3(blocks), kThreads, 0,
                                                    stream, to, factor, a, b));
  }
};

TEST_F(CudaGraphTest, BranchesWaitForWhatTheyRead) {
  std::mt19937 random(1);
  std::vector<std::uint32_t> values(std::size_t{4} * kCount);
  for (auto& value : values) value = static_cast<std::uint32_t>(random());
  for (const bool early : {false, true}) {
    SideStream side;
    DeviceBuffer<std::uint32_t> buffer(values);
    CudaGraph graph;
    graph.capture(stream, [&] { enqueue(buffer.data(), &side, stream, early); });
    graph.launch(stream);
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    const std::vector<std::uint32_t> found = buffer.download();
    std::size_t wrong = 0;
    for (int i = 0; i < kCount; ++i) {
      const auto at = [&](int part) { return static_cast<std::size_t>(part * kCount + i); };
      std::uint32_t x = values[at(0)], y = values[at(1)], z = values[at(2)];
      for (int layer = 0; layer < kLayers; ++layer) {
        x = 3 * x + y;
        y = 7 * x + z;
        z = 5 * x + z;
      }
      // An even number of layers: z is where it began.
      wrong += found[at(0)] != x || found[at(1)] != y || found[at(2)] != z;
    }
    EXPECT_EQ(0u, wrong) << "early " << early;
  }
}

TEST_F(CudaGraphTest, AnEarlyForkDependsOnNothingTwice) {
  DeviceBuffer<std::uint32_t> buffer(std::size_t{4} * kCount);
  for (const bool early : {false, true}) {
    SideStream side;
    ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    enqueue(buffer.data(), &side, stream, early);
    cudaGraph_t graph = nullptr;
    ASSERT_CUDA(cudaStreamEndCapture(stream, &graph));
    std::size_t edges = 0;
#if CUDART_VERSION >= 13000
    ASSERT_CUDA(cudaGraphGetEdges(graph, nullptr, nullptr, nullptr, &edges));
#else
    ASSERT_CUDA(cudaGraphGetEdges(graph, nullptr, nullptr, &edges));
#endif
    ASSERT_CUDA(cudaGraphDestroy(graph));
    // Two that fork, two that join before the next layer.
    const std::size_t needed = 4 * kLayers - 2;
    if (early) {
      EXPECT_EQ(needed, edges);
    } else {
      EXPECT_LE(needed, edges);
    }
  }
}

}  // namespace
