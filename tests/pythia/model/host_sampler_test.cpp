// The random numbers and the choice of the next token.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "examples/pythia/model/host_sampler.hpp"
#include "examples/pythia/model/philox.hpp"
#include "tests/support/expect_error.hpp"

namespace {

using pythia::SamplingOptions;
using test_support::expect_error;

const float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(Philox, KnownAnswers) {
  // The vectors published with Random123.
  const auto expect = [](const pythia::PhiloxBlock& block, std::vector<std::uint32_t> words) {
    EXPECT_EQ(std::vector<std::uint32_t>(block.word, block.word + 4), words);
  };
  expect(pythia::philox(0, 0, 0, 0, 0), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  expect(pythia::philox(~0ull, ~0u, ~0u, ~0u, ~0u),
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  expect(pythia::philox(0x299f31d0a4093822ull, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344),
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(Philox, SamplingUniformsAreInsideTheOpenIntervalAndKeyed) {
  double sum = 0;
  for (int token = 0; token < 4000; ++token) {
    const float u = pythia::sampling_uniform(5, 1, 77, token);
    ASSERT_GT(u, 0);
    ASSERT_LT(u, 1);
    ASSERT_TRUE(std::isfinite(std::log(-std::log(u))));
    sum += u;
  }
  EXPECT_NEAR(sum / 4000, 0.5, 0.02);
  const float u = pythia::sampling_uniform(5, 1, 77, 9);
  EXPECT_EQ(u, pythia::sampling_uniform(5, 1, 77, 9));
  EXPECT_NE(u, pythia::sampling_uniform(6, 1, 77, 9));
  EXPECT_NE(u, pythia::sampling_uniform(5, 2, 77, 9));
  EXPECT_NE(u, pythia::sampling_uniform(5, 1, 78, 9));
  EXPECT_NE(u, pythia::sampling_uniform(5, 1, 77, 10));
}

TEST(Sampler, GreedyTakesTheLowestIdOnATieAndKeepsToTheVocabulary) {
  const std::vector<float> logits{1, 3, 3, kNan, 9};
  SamplingOptions greedy;
  EXPECT_EQ(pythia::sample_token(logits.data(), 5, greedy, 0, 0), 4);
  greedy.vocab_limit = 4;
  EXPECT_EQ(pythia::sample_token(logits.data(), 5, greedy, 0, 0), 1);
  greedy.vocab_limit = 99;
  EXPECT_EQ(pythia::sample_token(logits.data(), 5, greedy, 0, 0), 4);
}

/// How often each id comes up over `draws` positions.
std::map<int, int> frequencies(const std::vector<float>& logits, const SamplingOptions& sampling,
                               int draws) {
  std::map<int, int> count;
  for (int position = 0; position < draws; ++position) {
    ++count[pythia::sample_token(logits.data(), static_cast<int>(logits.size()), sampling, 3,
                                 position)];
  }
  return count;
}

SamplingOptions warm(float temperature, int top_k, float top_p) {
  SamplingOptions sampling;
  sampling.temperature = temperature;
  sampling.top_k = top_k;
  sampling.top_p = top_p;
  sampling.seed = 42;
  return sampling;
}

/// Expects the draws to follow `probability`, within five standard deviations.
void expect_distribution(const std::map<int, int>& count, const std::map<int, double>& probability,
                         int draws) {
  for (const auto& [id, n] : count)
    EXPECT_TRUE(probability.count(id)) << id << " drawn " << n << " times";
  for (const auto& [id, p] : probability) {
    const auto found = count.find(id);
    EXPECT_NEAR(found == count.end() ? 0 : found->second, p * draws,
                5 * std::sqrt(draws * p * (1 - p)) + 1e-9)
        << id;
  }
}

// Probabilities 0.1, 0.4, 0.2, 0.3.
const std::vector<float> kLogits{std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};

TEST(Sampler, DrawsFromTheSoftmax) {
  const int draws = 20000;
  expect_distribution(frequencies(kLogits, warm(1, 0, 1), draws),
                      {{0, 0.1}, {1, 0.4}, {2, 0.2}, {3, 0.3}}, draws);
  // Temperature 1/2 squares the odds: 1, 16, 4, 9 of 30.
  expect_distribution(frequencies(kLogits, warm(0.5f, 0, 1), draws),
                      {{0, 1 / 30.0}, {1, 16 / 30.0}, {2, 4 / 30.0}, {3, 9 / 30.0}}, draws);
}

TEST(Sampler, TopKAndTopPCutTheTail) {
  const int draws = 5000;
  expect_distribution(frequencies(kLogits, warm(1, 2, 1), draws), {{1, 4 / 7.0}, {3, 3 / 7.0}},
                      draws);
  expect_distribution(frequencies(kLogits, warm(1, 0, 0.69f), draws), {{1, 4 / 7.0}, {3, 3 / 7.0}},
                      draws);
  expect_distribution(frequencies(kLogits, warm(1, 0, 0.71f), draws),
                      {{1, 4 / 9.0}, {3, 3 / 9.0}, {2, 2 / 9.0}}, draws);
  // top_p is measured among what top_k left: 4/7 = 0.571.
  expect_distribution(frequencies(kLogits, warm(1, 2, 0.56f), draws), {{1, 1.0}}, draws);
  expect_distribution(frequencies(kLogits, warm(1, 1, 1), 50), {{1, 1.0}}, 50);
  expect_distribution(frequencies(kLogits, warm(1, 0, 1e-6f), 50), {{1, 1.0}}, 50);
  expect_distribution(frequencies({5, 5, 5, 5}, warm(1, 2, 1), draws), {{0, 0.5}, {1, 0.5}}, draws);
}

TEST(Sampler, ExtremeValuesStayInRange) {
  const std::vector<float> logits{-1e30f, 1e30f, kNan, -std::numeric_limits<float>::infinity()};
  for (const float temperature : {1e-30f, 1.0f, 1e30f}) {
    for (const float p : {1.0f, 0.5f}) {
      for (const auto& [id, n] : frequencies(logits, warm(temperature, 0, p), 200)) {
        EXPECT_TRUE(id == 0 || id == 1) << id << " " << n;
      }
    }
  }
}

TEST(Sampler, RefusesWhatIsNoNumber) {
  const std::vector<float> logits{kNan, kNan};
  expect_error([&] { pythia::sample_token(logits.data(), 2, {}, 0, 17); }, {"position 17"});
  const std::vector<float> infinite{0, std::numeric_limits<float>::infinity()};
  expect_error([&] { pythia::sample_token(infinite.data(), 2, {}, 0, 3); }, {"position 3"});
  expect_error([] { pythia::check_sampling(warm(-1, 0, 1)); }, {"temperature", "-1"});
  expect_error([] { pythia::check_sampling(warm(kNan, 0, 1)); }, {"temperature"});
  expect_error([] { pythia::check_sampling(warm(1, -2, 1)); }, {"top_k", "-2"});
  expect_error([] { pythia::check_sampling(warm(1, 0, 0)); }, {"top_p"});
  expect_error([] { pythia::check_sampling(warm(1, 0, 1.5f)); }, {"top_p", "1.5"});
  pythia::check_sampling(warm(0, 0, 1));
}

TEST(Sampler, LikelihoodIsTheNegatedLogSoftmax) {
  EXPECT_NEAR(pythia::negative_log_likelihood(kLogits.data(), 4, 2), -std::log(0.2), 1e-6);
  const std::vector<float> huge{1000, 0};
  EXPECT_EQ(pythia::negative_log_likelihood(huge.data(), 2, 0), 0);
  EXPECT_EQ(pythia::negative_log_likelihood(huge.data(), 2, 1), 1000);
}

}  // namespace
