// One warp's tile against sums on the host, which are exact.
#include <vector>
#include <waterweight/device/fixed_point_tile.cuh>

#include "tests/support/device.cuh"

namespace {

using test::DeviceBuffer;

constexpr int kRows = waterweight::kTileRows;
constexpr int kPlanes = waterweight::kPlanes;

/// sums[kPlanes][kRows] and the rows' values, computed in `parts` tiles along K.
__global__ void multiply_tile(const std::int8_t* tile, const std::int8_t* planes, int k, int parts,
                              int* sums, float* values) {
  extern __shared__ __align__(128) std::int8_t memory[];
  const int pitch = k + 16, part_k = k / parts, lane = threadIdx.x;
  std::int8_t* const shared_planes = memory + kRows * part_k;
  for (int i = lane; i < kPlanes * k; i += 32) shared_planes[i / k * pitch + i % k] = planes[i];
  int sum = 0;
  for (int part = 0; part < parts; ++part) {
    __syncwarp();
    for (int i = lane; i < kRows * part_k; i += 32) {
      memory[i] = tile[i / part_k * k + part * part_k + i % part_k];
    }
    __syncwarp();
    sum += waterweight::warp_tile_sums(memory, shared_planes + part * part_k, pitch, part_k);
  }
  if (lane < kPlanes * kRows) sums[lane] = sum;
  const float value = waterweight::warp_tile_value(sum);
  if (lane < kRows) values[lane] = value;
}

class FixedPointTile : public test::GpuTest {};

TEST_F(FixedPointTile, SumsAreExactInOnePartAndInSeveral) {
  std::mt19937 generator(2);
  for (const int k : {16, 128, 256, 640, 2560}) {
    std::vector<std::int8_t> tile(static_cast<std::size_t>(kRows * k));
    std::vector<std::int8_t> planes(static_cast<std::size_t>(kPlanes * k));
    for (auto& q : tile) q = static_cast<std::int8_t>(test::random_int(-127, 127, generator));
    for (auto& d : planes) d = static_cast<std::int8_t>(test::random_int(-128, 127, generator));
    std::vector<int> expected(kPlanes * kRows);
    std::vector<float> expected_values(kRows);
    for (int row = 0; row < kRows; ++row) {
      double value = 0, weight = 1;
      for (int plane = 0; plane < kPlanes; ++plane, weight *= 256) {
        int sum = 0;
        for (int i = 0; i < k; ++i) {
          sum += tile[static_cast<std::size_t>(row * k + i)] *
                 planes[static_cast<std::size_t>(plane * k + i)];
        }
        expected[static_cast<std::size_t>(plane * kRows + row)] = sum;
        value += weight * sum;
      }
      expected_values[static_cast<std::size_t>(row)] = static_cast<float>(value);
    }
    DeviceBuffer<std::int8_t> device_tile(tile), device_planes(planes);
    for (const int parts : {1, k / 16}) {
      SCOPED_TRACE(::testing::Message() << "k " << k << " in " << parts);
      DeviceBuffer<int> sums(expected.size());
      DeviceBuffer<float> values(kRows);
      multiply_tile<<<1, 32, static_cast<std::size_t>(kRows * k + kPlanes * (k + 16)), stream>>>(
          device_tile.data(), device_planes.data(), k, parts, sums.data(), values.data());
      ASSERT_CUDA(cudaGetLastError());
      ASSERT_CUDA(cudaStreamSynchronize(stream));
      EXPECT_EQ(sums.download(), expected);
      const std::vector<float> found = values.download();
      for (std::size_t row = 0; row < kRows; ++row) {
        EXPECT_NEAR(found[row], expected_values[row], 1e-6f * std::abs(expected_values[row]) + 1);
      }
    }
  }
}

}  // namespace
