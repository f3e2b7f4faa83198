// One warp's two rows of 16-bit weights against sums on the host.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <vector>
#include <waterweight/device/half_tile.cuh>

#include "tests/support/device.cuh"

namespace {

using test::DeviceBuffer;

constexpr int kRows = waterweight::kHalfTileRows;

template <class T, int K>
__global__ void multiply_half_tile(const T* tile, const T* x, float* values) {
  __shared__ __align__(16) T shared_tile[kRows * K], shared_x[K];
  const int lane = threadIdx.x;
  for (int i = lane; i < kRows * K; i += 32) shared_tile[i] = tile[i];
  for (int i = lane; i < K; i += 32) shared_x[i] = x[i];
  __syncwarp();
  const waterweight::warp_half_tile<T, K> weights(shared_tile);
  __syncwarp();
  for (int i = threadIdx.x; i < waterweight::kHalfTileRows * K; i += 32) {
    shared_tile[i] = T(99.0f);  // its place is free by now
  }
  __syncwarp();
  const float value = weights.sum(shared_x);
  if (lane < kRows) values[lane] = value;
}

class HalfTile : public test::GpuTest {
 protected:
  /// Whole numbers that T holds and whose sums fp32 does: every element must have met its own.
  template <class T, int K>
  void expect_exact() {
    SCOPED_TRACE(K);
    std::mt19937 generator(3);
    std::vector<T> tile, x;
    std::vector<float> expected(kRows, 0.0f);
    for (int i = 0; i < kRows * K; ++i) {
      tile.push_back(T(static_cast<float>(test::random_int(-100, 100, generator))));
    }
    for (int i = 0; i < K; ++i) {
      x.push_back(T(static_cast<float>(test::random_int(-50, 50, generator))));
    }
    for (std::size_t i = 0; i < tile.size(); ++i) {
      expected[i / K] += static_cast<float>(tile[i]) * static_cast<float>(x[i % K]);
    }
    DeviceBuffer<T> device_tile(tile), device_x(x);
    DeviceBuffer<float> values(kRows);
    multiply_half_tile<T, K>
        <<<1, 32, 0, stream>>>(device_tile.data(), device_x.data(), values.data());
    ASSERT_CUDA(cudaGetLastError());
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    EXPECT_EQ(values.download(), expected);
  }
};

TEST_F(HalfTile, EveryElementMeetsItsOwn) {
  expect_exact<__half, 256>();
  expect_exact<__half, 512>();
  expect_exact<__half, 2560>();
  expect_exact<__nv_bfloat16, 1024>();
}

}  // namespace
