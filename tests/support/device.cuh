// What every GPU test needs: skipping, buffers with guard zones, random data, eager and captured
// runs.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include <waterweight/device_info.cuh>

namespace test {

#define ASSERT_CUDA(call) ASSERT_EQ(cudaSuccess, (call))
#define EXPECT_CUDA(call) EXPECT_EQ(cudaSuccess, (call))

inline bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/// A test fixture that skips, visibly, where there is no GPU, and owns a stream.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no CUDA device";
    ASSERT_CUDA(waterweight::query_device(&device, 0));
    ASSERT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  void TearDown() override {
    if (stream == nullptr) return;
    EXPECT_CUDA(cudaStreamSynchronize(stream));
    EXPECT_CUDA(cudaStreamDestroy(stream));
  }

  /// Runs `body` eagerly, then captured in a graph that is replayed `replays` times.
  /// `between` puts the device memory `body` changes back and is called before each run;
  /// `check` is called after each run with its number.
  template <class Between, class Body, class Check>
  void run_eager_and_captured(const Between& between, const Body& body, const Check& check) {
    between();
    ASSERT_CUDA(body());
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    check(0);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const cudaError_t captured = body();
    ASSERT_CUDA(cudaStreamEndCapture(stream, &graph));
    ASSERT_CUDA(captured);
    ASSERT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    for (int replay = 1; replay <= 2; ++replay) {
      between();
      ASSERT_CUDA(cudaGraphLaunch(executable, stream));
      ASSERT_CUDA(cudaStreamSynchronize(stream));
      check(replay);
    }
    ASSERT_CUDA(cudaGraphExecDestroy(executable));
    ASSERT_CUDA(cudaGraphDestroy(graph));
  }

  waterweight::device_info device;
  cudaStream_t stream = nullptr;
};

/// Device memory between two guard zones of 0xA5 bytes, itself filled with 0xFF (NaN in every
/// floating type) until written.
template <class T>
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t count) : count_(count) {
    EXPECT_CUDA(cudaMalloc(&base_, bytes() + 2 * kGuard));
    EXPECT_CUDA(cudaMemset(base_, 0xA5, bytes() + 2 * kGuard));
    poison();
  }
  explicit DeviceBuffer(const std::vector<T>& host) : DeviceBuffer(host.size()) { upload(host); }
  ~DeviceBuffer() {
    std::vector<unsigned char> all(bytes() + 2 * kGuard);
    EXPECT_CUDA(cudaMemcpy(all.data(), base_, all.size(), cudaMemcpyDeviceToHost));
    std::size_t damaged = 0;
    for (std::size_t i = 0; i < kGuard; ++i) {
      damaged += all[i] != 0xA5;
      damaged += all[all.size() - 1 - i] != 0xA5;
    }
    EXPECT_EQ(0u, damaged) << "bytes written outside a buffer of " << bytes();
    EXPECT_CUDA(cudaFree(base_));
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  T* data() { return reinterpret_cast<T*>(static_cast<unsigned char*>(base_) + kGuard); }
  std::size_t size() const { return count_; }
  std::size_t bytes() const { return count_ * sizeof(T); }
  // Memsets and copies from pageable memory may still be under way when they return, and the tests'
  // stream does not wait for them.
  void poison() {
    EXPECT_CUDA(cudaMemset(data(), 0xFF, bytes()));
    EXPECT_CUDA(cudaDeviceSynchronize());
  }
  void upload(const std::vector<T>& host) {
    ASSERT_EQ(count_, host.size());
    EXPECT_CUDA(cudaMemcpy(data(), host.data(), bytes(), cudaMemcpyHostToDevice));
    EXPECT_CUDA(cudaDeviceSynchronize());
  }
  std::vector<T> download() {
    std::vector<T> host(count_);
    EXPECT_CUDA(cudaMemcpy(host.data(), data(), bytes(), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  static constexpr std::size_t kGuard = 256;
  void* base_ = nullptr;
  std::size_t count_;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

/// Every byte of the element is still the poison.
template <class T>
bool is_poison(const T& value) {
  unsigned char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  for (unsigned char byte : bytes) {
    if (byte != 0xFF) return false;
  }
  return true;
}

/// Normal deviates of the given deviation, rounded to T.
template <class T>
std::vector<T> random_normal(std::size_t count, float deviation, std::mt19937& generator) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(normal(generator));
  return values;
}

inline int random_int(int low, int high, std::mt19937& generator) {
  return std::uniform_int_distribution<int>(low, high)(generator);
}

}  // namespace test
