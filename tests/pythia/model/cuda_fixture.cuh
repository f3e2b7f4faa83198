// What the tests of the CUDA engine share: skipping without a GPU, engines over test models.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "examples/pythia/model/cuda_device.hpp"
#include "examples/pythia/model/cuda_engine.hpp"
#include "tests/pythia/model/host_fixture.hpp"

namespace cuda_test {

using host_test::Ids;

class CudaEngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const pythia::CudaStatus status = pythia::query_cuda();
    if (!status.usable) GTEST_SKIP() << status.reason;
  }
};

/// Room for 2048 tokens unless `options` says otherwise. It decodes in a launch per operation: what
/// it makes of one sequence alone is then compared with what it makes of several. For the other way
/// see cuda_token_test.cu.
inline std::unique_ptr<pythia::Engine> engine(const std::filesystem::path& dir,
                                              pythia::EngineOptions options = {}) {
  options.device = pythia::DeviceType::cuda;
  options.one_launch_decode = false;
  return pythia::make_cuda_engine({dir, ""}, options);
}

inline pythia::EngineOptions with(pythia::WeightType weights, pythia::Policy policy) {
  pythia::EngineOptions options;
  options.weights = weights;
  options.policy = policy;
  return options;
}

/// Ids that follow no pattern, in [1, vocab).
inline Ids arbitrary_ids(int count, int vocab, std::uint32_t seed) {
  Ids ids;
  std::uint32_t state = seed * 2654435761u + 1;
  for (int i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    ids.push_back(1 +
                  static_cast<std::int32_t>((state >> 8) % static_cast<std::uint32_t>(vocab - 1)));
  }
  return ids;
}

}  // namespace cuda_test
