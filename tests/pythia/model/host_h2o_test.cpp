// H2O decoding of the bundled model on the host against an independent restatement on original
// indices.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/pythia/model/host_fixture.hpp"

namespace {

using host_test::Ids;
using nlohmann::json;
using pythia::CacheSnapshot;
using pythia::EngineOptions;
using pythia::Scores;

EngineOptions h2o(int sinks, int heavy, int recent) {
  EngineOptions options;
  options.policy = pythia::Policy::h2o;
  options.sinks = sinks;
  options.heavy = heavy;
  options.recent = recent;
  return options;
}

EngineOptions h2o(const json& expected) {
  return h2o(expected["sinks"], expected["heavy"], expected["recent"]);
}

TEST(HostH2o, TeacherForcedDecodingMatchesTheGoldenCases) {
  for (const json& expected : host_test::golden("h2o_cases.json")) {
    SCOPED_TRACE(expected["prompt"].dump() + " " + expected["heavy"].dump());
    const auto engine = host_test::engine(host_test::tiny_neox(), h2o(expected));
    const Ids ids = expected["input_ids"];
    const Scores scores = engine->score_decoded(ids, expected["prompt"]);
    EXPECT_NEAR(host_test::mean(scores.nll), expected["mean_nll_of_decoded"].get<double>(), 1e-3);
    EXPECT_LT(host_test::relative_difference(scores.last_logits, expected["last_logits"]), 1e-2);

    std::size_t total = 0, shared = 0;
    for (int layer = 0; layer < engine->config().num_layers; ++layer) {
      const CacheSnapshot cache = engine->cache_snapshot(0, layer);
      for (int head = 0; head < engine->config().num_heads; ++head) {
        const std::vector<int> positions = expected["kept_positions"][layer][head];
        const std::vector<float> kept_scores = expected["scores_of_kept"][layer][head];
        ASSERT_EQ(cache.positions[head].size(), positions.size());
        total += positions.size();
        for (std::size_t i = 0; i < positions.size(); ++i) {
          const auto& actual = cache.positions[head];
          const auto found = std::lower_bound(actual.begin(), actual.end(), positions[i]);
          if (found == actual.end() || *found != positions[i]) continue;
          ++shared;
          const float score = cache.scores[head][found - actual.begin()];
          EXPECT_NEAR(score, kept_scores[i], 1e-2 + 1e-2 * kept_scores[i]);
        }
      }
    }
    EXPECT_GE(static_cast<double>(shared), 0.99 * static_cast<double>(total));
  }
}

TEST(HostH2o, PrefillScoresSumToThePromptLength) {
  for (const json& expected : host_test::golden("h2o_cases.json")) {
    const int prompt = expected["prompt"];
    const Ids ids = expected["input_ids"];
    const auto engine = host_test::engine(host_test::tiny_neox(), h2o(0, prompt, 0));
    engine->start({{ids.begin(), ids.begin() + prompt}}, {});
    for (int layer = 0; layer < engine->config().num_layers; ++layer) {
      const CacheSnapshot cache = engine->cache_snapshot(0, layer);
      for (int head = 0; head < engine->config().num_heads; ++head) {
        const double sum =
            std::accumulate(cache.scores[head].begin(), cache.scores[head].end(), 0.0);
        const double golden = expected["prefill_score_sum_per_head"][layer][head];
        EXPECT_NEAR(sum, golden, 1e-3 * golden);
        EXPECT_NEAR(sum, prompt, 1e-3);
      }
    }
  }
}

TEST(HostH2o, ABudgetOfTheWholeLengthIsFullAttentionBitForBit) {
  const Ids ids = host_test::golden("h2o_cases.json")[0]["input_ids"];
  const auto full = host_test::engine(host_test::tiny_neox());
  const auto evicting = host_test::engine(host_test::tiny_neox(), h2o(0, 300, 200));
  const Scores a = full->score_decoded(ids, 100), b = evicting->score_decoded(ids, 100);
  EXPECT_EQ(a.nll, b.nll);
  EXPECT_EQ(a.last_logits, b.last_logits);
}

TEST(HostH2o, ARecentWindowAloneKeepsTheLastTokensAndTheSinks) {
  const Ids ids = host_test::golden("h2o_cases.json")[0]["input_ids"];
  const auto engine = host_test::engine(host_test::tiny_neox(), h2o(3, 0, 20));
  engine->score_decoded({ids.begin(), ids.begin() + 90}, 50);
  Ids expected{0, 1, 2};
  for (int position = 70; position < 90; ++position) expected.push_back(position);
  for (int layer = 0; layer < engine->config().num_layers; ++layer) {
    for (const auto& positions : engine->cache_snapshot(0, layer).positions) {
      EXPECT_EQ(positions, expected);
    }
  }
}

TEST(HostH2o, DecodesPastMaxTokensWhereFullAttentionRefuses) {
  EngineOptions options = h2o(0, 4, 4);
  options.max_tokens = 12;
  EXPECT_EQ(host_test::generate(*host_test::engine(host_test::tiny_neox(), options), {1, 2, 3}, 30)
                .size(),
            30u);
}

}  // namespace
