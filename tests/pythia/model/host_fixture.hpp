// What the tests of the host path share: the golden answers, engines over test models, comparisons.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "examples/pythia/model/host_engine.hpp"
#include "tests/support/data_path.hpp"

namespace host_test {

using Ids = std::vector<std::int32_t>;

inline std::filesystem::path tiny_neox() {
  return test_support::examples_path("pythia/models/tiny-neox");
}

inline nlohmann::json golden(const std::string& file) {
  std::ifstream stream(test_support::data_path(file));
  return nlohmann::json::parse(stream);
}

inline std::unique_ptr<pythia::Engine> engine(const std::filesystem::path& dir,
                                              const pythia::EngineOptions& options = {}) {
  return pythia::make_host_engine({dir, ""}, options);
}

inline double mean(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

inline double norm(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * value;
  return std::sqrt(sum);
}

/// |a - b| / |b|.
inline double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<float> difference;
  for (std::size_t i = 0; i < b.size(); ++i) difference.push_back(a.at(i) - b[i]);
  return norm(difference) / norm(b);
}

/// A prompt and `count` tokens sampled after it.
inline Ids generate(pythia::Engine& engine, const Ids& prompt, int count,
                    const pythia::SamplingOptions& sampling = {}) {
  Ids tokens = engine.start({prompt}, sampling);
  while (static_cast<int>(tokens.size()) < count) tokens.push_back(engine.next()[0]);
  return tokens;
}

/// A token that the first sequence comes to ends it, and others only where they come to it: a
/// sequence that has ended repeats its last token. That holds for a first token too.
inline void expect_stop_token_honoured(pythia::Engine& engine, const std::vector<Ids>& prompts) {
  constexpr std::size_t kSteps = 16;
  const auto steps = [&](const pythia::SamplingOptions& sampling) {
    std::vector<Ids> tokens{engine.start(prompts, sampling)};
    engine.expect_next(kSteps);
    while (tokens.size() <= kSteps) tokens.push_back(engine.next());
    return tokens;
  };
  const std::vector<Ids> endless = steps({});
  for (const std::size_t end : {std::size_t{0}, std::size_t{6}}) {
    pythia::SamplingOptions sampling;
    sampling.stop[1] = endless[end][0];
    const std::vector<Ids> found = steps(sampling);
    for (std::size_t b = 0; b < prompts.size(); ++b) {
      bool ended = false;
      for (std::size_t i = 0; i <= kSteps; ++i) {
        EXPECT_EQ(found[i][b], ended ? sampling.stop[1] : endless[i][b]) << b << " " << i;
        ended = ended || endless[i][b] == sampling.stop[1];
      }
      EXPECT_TRUE(ended || b > 0);
    }
    // Nothing of it is left behind.
    EXPECT_EQ(steps({}), endless);
  }
}

}  // namespace host_test
