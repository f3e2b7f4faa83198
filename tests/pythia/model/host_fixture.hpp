// What the tests of the host path share: the golden answers, engines over test models, comparisons.
#pragma once

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

}  // namespace host_test
