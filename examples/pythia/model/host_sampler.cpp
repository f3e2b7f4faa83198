#include "examples/pythia/model/host_sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "examples/pythia/io/error.hpp"
#include "examples/pythia/model/philox.hpp"

namespace pythia {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

float rank_value(float logit) { return std::isnan(logit) ? kLowest : logit; }

/// The ids that top_k and top_p leave, in falling order of logit.
std::vector<std::int32_t> candidates(const float* logits, int count,
                                     const SamplingOptions& sampling) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  if (sampling.top_k == 0 && sampling.top_p >= 1.0f) return ids;
  const int k = sampling.top_k == 0 ? count : std::min(sampling.top_k, count);
  const auto before = [&](std::int32_t a, std::int32_t b) {
    const float x = rank_value(logits[a]), y = rank_value(logits[b]);
    return x != y ? x > y : a < b;
  };
  std::partial_sort(ids.begin(), ids.begin() + k, ids.end(), before);
  ids.resize(static_cast<std::size_t>(k));
  if (sampling.top_p >= 1.0f) return ids;

  std::vector<double> weight;
  for (const std::int32_t id : ids) {
    const float difference = rank_value(logits[id]) - logits[ids[0]];
    weight.push_back(std::exp(static_cast<double>(difference / sampling.temperature)));
  }
  const double target = sampling.top_p * std::accumulate(weight.begin(), weight.end(), 0.0);
  double sum = 0;
  std::size_t kept = 0;
  while (kept < ids.size() && (kept == 0 || sum < target)) sum += weight[kept++];
  ids.resize(kept);
  return ids;
}

}  // namespace

std::int32_t argmax(const float* values, int count) {
  std::int32_t best = 0;
  for (int i = 1; i < count; ++i) {
    if (rank_value(values[i]) > rank_value(values[best])) best = i;
  }
  return best;
}

float negative_log_likelihood(const float* logits, int vocab_size, std::int32_t target) {
  const float largest = logits[argmax(logits, vocab_size)];
  double sum = 0;
  for (int i = 0; i < vocab_size; ++i) sum += std::exp(logits[i] - largest);
  return static_cast<float>(std::log(sum) + largest - logits[target]);
}

void check_sampling(const SamplingOptions& sampling) {
  const auto refuse = [](const char* what, const std::string& expected, double found) {
    throw Error(std::string("sampling ") + what + ": expected " + expected + ", found " +
                std::to_string(found));
  };
  if (!(sampling.temperature >= 0) || std::isinf(sampling.temperature)) {
    refuse("temperature", "a finite number >= 0", sampling.temperature);
  }
  if (sampling.top_k < 0) refuse("top_k", "an integer >= 0", sampling.top_k);
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    refuse("top_p", "a number in (0, 1]", sampling.top_p);
  }
  if (sampling.vocab_limit < 0) refuse("vocab_limit", "an integer >= 0", sampling.vocab_limit);
}

std::int32_t sample_token(const float* logits, int vocab_size, const SamplingOptions& sampling,
                          int sequence, int position) {
  const int count =
      sampling.vocab_limit > 0 ? std::min(sampling.vocab_limit, vocab_size) : vocab_size;
  const std::int32_t best = argmax(logits, count);
  if (!std::isfinite(logits[best])) {
    throw Error("logits at position " + std::to_string(position) +
                ": expected finite numbers, found none or an infinity");
  }
  if (sampling.temperature == 0) return best;
  std::int32_t chosen = best;
  float highest = kLowest;
  for (const std::int32_t id : candidates(logits, count, sampling)) {
    const float u = sampling_uniform(sampling.seed, sequence, position, id);
    const float noise = -std::log(-std::log(u));
    const float key = (rank_value(logits[id]) - logits[best]) / sampling.temperature + noise;
    if (key > highest || (key == highest && id < chosen)) {
      highest = key;
      chosen = id;
    }
  }
  return chosen;
}

}  // namespace pythia
