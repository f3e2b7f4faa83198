// One warp's tile against sums on the host, which are exact.
#include <vector>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/device/fixed_point_tile.cuh>

#include "tests/support/device.cuh"

namespace {

using test::DeviceBuffer;

constexpr int kRows = waterweight::kTileRows;
constexpr int kPlanes = waterweight::kPlanes;

/// sums[kPlanes][kRows] and the rows' values, computed in `parts` tiles of PartK along K.
template <int PartK>
__global__ void multiply_tile(const std::int8_t* tile, const std::int8_t* planes, int parts,
                              int* sums, float* values) {
  extern __shared__ __align__(128) std::int8_t memory[];
  const int k = parts * PartK, pitch = k + 16, lane = threadIdx.x;
  std::int8_t* const shared_planes = memory + kRows * PartK;
  for (int i = lane; i < kPlanes * k; i += 32) shared_planes[i / k * pitch + i % k] = planes[i];
  int sum = 0;
  std::uint32_t loaded = 0;
  for (int part = 0; part < parts; ++part) {
    __syncwarp();
    for (int i = lane; i < kRows * PartK; i += 32) {
      memory[i] = tile[i / PartK * k + part * PartK + i % PartK];
    }
    __syncwarp();
    const waterweight::warp_tile<PartK> weights(memory);
    loaded ^= weights.loaded();
    __syncwarp();
    for (int i = lane; i < kRows * PartK; i += 32) memory[i] = 99;  // its place is free by now
    __syncwarp();
    sum += weights.sums(shared_planes + part * PartK, pitch);
  }
  for (int i = 0; i < kPlanes * kRows; ++i) {
    if (lane == waterweight::tile_sum_lane(i / kRows, i % kRows)) sums[i] = sum;
  }
  // What an arrival is made dependent on changes no address.
  sum += static_cast<int>(waterweight::detail::after_loading(loaded, parts));
  const float value = waterweight::warp_tile_value(sum);
  if (lane < kRows) values[lane] = value;
}

class FixedPointTile : public test::GpuTest {
 protected:
  template <int PartK>
  void expect_exact(int parts) {
    std::mt19937 generator(2);
    const int k = parts * PartK;
    SCOPED_TRACE(::testing::Message() << parts << " parts of " << PartK);
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
    DeviceBuffer<int> sums(expected.size());
    DeviceBuffer<float> values(kRows);
    multiply_tile<PartK>
        <<<1, 32, static_cast<std::size_t>(kRows * PartK + kPlanes * (k + 16)), stream>>>(
            device_tile.data(), device_planes.data(), parts, sums.data(), values.data());
    ASSERT_CUDA(cudaGetLastError());
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    EXPECT_EQ(sums.download(), expected);
    const std::vector<float> found = values.download();
    for (std::size_t row = 0; row < kRows; ++row) {
      EXPECT_NEAR(found[row], expected_values[row], 1e-6f * std::abs(expected_values[row]) + 1);
    }
  }
};

TEST_F(FixedPointTile, SumsAreExactInOnePartAndInSeveral) {
  expect_exact<128>(1);
  expect_exact<256>(1);
  expect_exact<640>(1);
  expect_exact<2560>(1);
  expect_exact<128>(20);
  expect_exact<1024>(4);
}

}  // namespace
