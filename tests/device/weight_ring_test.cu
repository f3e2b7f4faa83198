// The ring of weights: every tile arrives whole and in order, whatever the depth and the limit.
#include <algorithm>
#include <tuple>
#include <vector>
#include <waterweight/detail/launch.cuh>
#include <waterweight/device/ring_order.hpp>
#include <waterweight/device/weight_ring.cuh>

#include "tests/support/device.cuh"

namespace {

using test::DeviceBuffer;

constexpr int kConsumers = 3;  // warps
constexpr int kMaxSlots = 8;

/// Consumer warp w takes tiles w, w + kConsumers, ... and copies them to `out`. The warps behind
/// them push in turn, one thread of each: tiles whole, or row by row, which lie in reverse order.
/// The first `readers` lanes of a warp say that it has read a tile.
__global__ void copy_through_ring(const std::int8_t* in, int tiles, int row_bytes, int slots,
                                  int most_in_flight, int readers, std::int8_t* out) {
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ std::uint64_t barriers[2 * kMaxSlots];
  const int bytes = 4 * row_bytes, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const waterweight::weight_ring ring{memory, barriers, barriers + kMaxSlots, slots, bytes};
  if (threadIdx.x == 0) ring.init(readers);
  __syncthreads();
  if (warp >= kConsumers) {
    if (lane != 0) return;
    const int producers = static_cast<int>(blockDim.x) / 32 - kConsumers;
    waterweight::ring_producer producer(ring, most_in_flight, warp - kConsumers, producers);
    for (int i = warp - kConsumers; i < tiles; i += producers) {
      if (i % 2 == 0) {
        producer.push(in + i * bytes, bytes);
      } else {
        producer.push<4>(in + (i + 1) * bytes - row_bytes, row_bytes, -row_bytes);
      }
    }
    return;
  }
  waterweight::ring_cursor cursor;
  cursor.advance(warp, slots);
  for (int i = warp; i < tiles; i += kConsumers, cursor.advance(kConsumers, slots)) {
    waterweight::detail::mbarrier_wait(ring.full + cursor.slot, cursor.parity);
    const auto* tile = reinterpret_cast<const std::int8_t*>(ring.slot(cursor.slot));
    for (int b = lane; b < bytes; b += 32) {
      const int row = i % 2 == 0 ? b / row_bytes : 3 - b / row_bytes;
      out[i * bytes + row * row_bytes + b % row_bytes] = tile[b];
    }
    __syncwarp();
    if (lane < readers) waterweight::detail::mbarrier_arrive(ring.empty + cursor.slot);
  }
}

class WeightRing : public test::GpuTest {
 protected:
  void SetUp() override {
    test::GpuTest::SetUp();
    if (IsSkipped()) return;
    if (!waterweight::detail::compiled_for(90, copy_through_ring)) {
      GTEST_SKIP() << "built for an architecture without bulk copies";
    }
  }

  void expect_whole_and_in_order(int readers, int producers) {
    std::mt19937 generator(1);
    for (const int row_bytes : {32, 160, 1280}) {
      for (const auto& [tiles, slots, in_flight] :
           {std::tuple(1, 4, 1), std::tuple(7, 5, 2), std::tuple(8, 8, 3), std::tuple(100, 7, 4),
            std::tuple(101, 8, 5), std::tuple(64, 4, 1), std::tuple(500, 8, 2)}) {
        const int most = waterweight::ring_most_in_flight(slots, producers, kConsumers);
        if (producers == 1) ASSERT_LE(in_flight, most);
        if (in_flight > most) continue;
        SCOPED_TRACE(::testing::Message() << row_bytes << " x 4, " << tiles << " tiles, " << slots
                                          << " slots, " << in_flight << " in flight");
        std::vector<std::int8_t> host(static_cast<std::size_t>(tiles * 4 * row_bytes));
        for (auto& byte : host)
          byte = static_cast<std::int8_t>(test::random_int(-127, 127, generator));
        DeviceBuffer<std::int8_t> in(host), out(host.size());
        copy_through_ring<<<1, 32 * (kConsumers + producers),
                            static_cast<std::size_t>(slots * 4 * row_bytes), stream>>>(
            in.data(), tiles, row_bytes, slots, in_flight, readers, out.data());
        ASSERT_CUDA(cudaGetLastError());
        ASSERT_CUDA(cudaStreamSynchronize(stream));
        EXPECT_EQ(out.download(), host);
      }
    }
  }
};

TEST_F(WeightRing, BringsEveryTileWholeAndInOrder) {
  for (const int producers : {1, 2, 3}) expect_whole_and_in_order(1, producers);
}

// The same protocol as racecheck can follow it: tests/run_gpu.sh.
TEST_F(WeightRing, BringsThemWhenEveryLaneSaysThatItHasRead) {
  for (const int producers : {1, 2, 3}) expect_whole_and_in_order(32, producers);
}

/// One warp's first thread pushes more tiles than the ring has slots; another's reads none of them
/// before it sees that the first has been idle (or gives up). full_after, idle: calls of idle()
/// until the ring was full, and altogether, from 0.
__global__ void fill_ring(const std::int8_t* in, int tiles, int slots, int* full_after,
                          volatile int* idle, std::int8_t* out) {
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ std::uint64_t barriers[2 * kMaxSlots];
  constexpr int kBytes = 16, kPatience = 100000;
  const waterweight::weight_ring ring{memory, barriers, barriers + kMaxSlots, slots, kBytes};
  if (threadIdx.x == 0) ring.init();
  __syncthreads();
  if (threadIdx.x == 32) {
    waterweight::ring_producer producer(ring, 1);
    for (int i = 0; i < tiles; ++i) {
      if (i == slots) *full_after = *idle;
      producer.push(in + i * kBytes, kBytes, 0, [&] { *idle = *idle + 1; });
    }
  } else if (threadIdx.x == 0) {
    for (int i = 0; i < kPatience && *idle == 0; ++i) __nanosleep(100);
    waterweight::ring_cursor cursor;
    for (int i = 0; i < tiles; ++i, cursor.advance(1, slots)) {
      waterweight::detail::mbarrier_wait(ring.full + cursor.slot, cursor.parity);
      const auto* tile = reinterpret_cast<const std::int8_t*>(ring.slot(cursor.slot));
      for (int b = 0; b < kBytes; ++b) out[i * kBytes + b] = tile[b];
      waterweight::detail::mbarrier_arrive(ring.empty + cursor.slot);
    }
  }
}

TEST_F(WeightRing, CallsBackWhileItIsFull) {
  constexpr int kTiles = 20, kSlots = 4;
  std::mt19937 generator(2);
  std::vector<std::int8_t> host(16 * kTiles);
  for (auto& byte : host) byte = static_cast<std::int8_t>(test::random_int(-127, 127, generator));
  DeviceBuffer<std::int8_t> in(host), out(host.size());
  DeviceBuffer<int> full_after(std::vector<int>{-1}), idle(std::vector<int>{0});
  fill_ring<<<1, 64, 16 * kSlots, stream>>>(in.data(), kTiles, kSlots, full_after.data(),
                                            idle.data(), out.data());
  ASSERT_CUDA(cudaGetLastError());
  ASSERT_CUDA(cudaStreamSynchronize(stream));
  EXPECT_EQ(out.download(), host);
  EXPECT_EQ(full_after.download()[0], 0) << "idle before it was full";
  EXPECT_GT(idle.download()[0], 0) << "never idle";
}

}  // namespace
