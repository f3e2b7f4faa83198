// Every eviction policy, granularity and interval on the host engine.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

#include "tests/pythia/model/policy_fixture.hpp"
#include "tests/support/expect_error.hpp"

namespace {

using namespace policy_test;
using pythia::Scores;

Ids text() { return host_test::golden("h2o_cases.json")[0]["input_ids"]; }

Ids first(const Ids& ids, int count) { return {ids.begin(), ids.begin() + count}; }

TEST(HostPolicy, KeepsItsBudgetAndWhatIsProtected) {
  const Ids ids = text();
  for (const Case& c : all_cases()) {
    const auto engine = host_test::engine(host_test::tiny_neox(), c.options);
    for (const auto& [prompt, tokens] :
         {std::pair{1, 40}, {31, 36}, {32, 33}, {33, 38}, {34, 34}, {60, 93}, {20, 110}}) {
      SCOPED_TRACE(c.name + " " + std::to_string(prompt) + " " + std::to_string(tokens));
      if (tokens > prompt) {
        engine->score_decoded(first(ids, tokens), prompt);
      } else {
        engine->start({first(ids, prompt)}, {});
      }
      expect_kept(*engine, c.options, prompt, tokens);
    }
  }
}

TEST(HostPolicy, PositionsAndDrawsAloneDecideWhereScoresDoNot) {
  const Ids ids = text();
  for (const Case& c : all_cases()) {
    if (!c.exact()) continue;
    SCOPED_TRACE(c.name);
    const auto engine = host_test::engine(host_test::tiny_neox(), c.options);
    const int tokens = 60 + 7 * c.options.evict_every;  // the last token brings an eviction
    engine->score_decoded(first(ids, tokens), 60);
    for (int layer = 0; layer < engine->config().num_layers; ++layer) {
      const CacheSnapshot snapshot = engine->cache_snapshot(0, layer);
      for (int head = 0; head < engine->config().num_heads; ++head) {
        EXPECT_EQ(snapshot.positions[head], exact_positions(c.options, layer, head, tokens));
      }
    }
  }
}

TEST(HostPolicy, RandomDependsOnItsSeedAndOnNothingElse) {
  const Ids ids = text();
  EngineOptions options = evicting(Policy::random, 0, 16, 16);
  const auto kept = [&](const Ids& tokens) {
    const auto engine = host_test::engine(host_test::tiny_neox(), options);
    engine->score_decoded(tokens, 50);
    return engine->cache_snapshot(0, 1).positions;
  };
  const auto before = kept(first(ids, 90));
  EXPECT_EQ(kept(Ids(ids.begin() + 100, ids.begin() + 190)), before) << "another text";
  EXPECT_NE(before[0], before[1]) << "heads draw alike";
  options.policy_seed = 43;
  EXPECT_NE(kept(first(ids, 90)), before);
}

/// Sums of the scores by position over the heads that share a set with (layer, head).
std::map<int, double> shared_scores(const pythia::Engine& engine, const EngineOptions& options,
                                    int layer, int head) {
  std::map<int, double> sums;
  for (int l = 0; l < engine.config().num_layers; ++l) {
    if (options.granularity != h2o_granularity::per_model && l != layer) continue;
    const CacheSnapshot snapshot = engine.cache_snapshot(0, l);
    for (int h = 0; h < engine.config().num_heads; ++h) {
      if (options.granularity == h2o_granularity::per_head && h != head) continue;
      for (std::size_t i = 0; i < snapshot.positions[h].size(); ++i) {
        sums[snapshot.positions[h][i]] += snapshot.scores[h][i];
      }
    }
  }
  return sums;
}

TEST(HostPolicy, TheLeastAttendedKeyOfThoseThatShareASetLeaves) {
  const Ids ids = first(text(), 60);
  for (const Case& c : all_cases()) {
    if (c.exact() || c.options.evict_every > 1) continue;
    SCOPED_TRACE(c.name);
    const auto engine = host_test::engine(host_test::tiny_neox(), c.options);
    engine->start({ids}, {});
    int victims = 0;
    for (int step = 60; step < 90; ++step) {
      const auto before = shared_scores(*engine, c.options, 2, 1);
      engine->next();
      const auto after = shared_scores(*engine, c.options, 2, 1);
      double least = std::numeric_limits<double>::infinity();
      for (const auto& [position, score] : after) {
        const bool is_protected = position < c.options.sinks || position > step - c.options.recent;
        if (!is_protected) least = std::min(least, score);
      }
      for (const auto& [position, score] : before) {
        if (after.count(position) != 0) continue;
        ++victims;
        EXPECT_LE(score, least) << "position " << position << " left at step " << step;
      }
    }
    EXPECT_EQ(victims, 30);
  }
}

TEST(HostPolicy, ASharedSetChoosesFromThePromptBySummedScores) {
  const Ids ids = first(text(), 100);
  for (const auto granularity : {h2o_granularity::per_layer, h2o_granularity::per_model}) {
    const EngineOptions options = evicting(Policy::h2o, 2, 20, 10, 1, granularity);
    EngineOptions keeps_all = options;
    keeps_all.heavy = 100;
    const auto all = host_test::engine(host_test::tiny_neox(), keeps_all);
    const auto cut = host_test::engine(host_test::tiny_neox(), options);
    all->start({ids}, {});
    cut->start({ids}, {});
    const auto sums = shared_scores(*all, options, 3, 0);
    std::vector<std::pair<double, int>> ranked;
    for (int position = 2; position < 90; ++position) {
      ranked.emplace_back(-sums.at(position), position);
    }
    std::sort(ranked.begin(), ranked.end());
    Ids expected{0, 1};
    for (int i = 0; i < 20; ++i) expected.push_back(ranked[i].second);
    for (int position = 90; position < 100; ++position) expected.push_back(position);
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(cut->cache_snapshot(0, 3).positions[0], expected);
  }
}

TEST(HostPolicy, ABudgetOfTheWholeLengthIsFullAttentionBitForBit) {
  const Ids ids = first(text(), 120);
  const Scores full = host_test::engine(host_test::tiny_neox())->score_decoded(ids, 50);
  for (Case c : all_cases()) {
    SCOPED_TRACE(c.name);
    c.options.recent = 120;
    const auto engine = host_test::engine(host_test::tiny_neox(), c.options);
    const Scores scores = engine->score_decoded(ids, 50);
    EXPECT_EQ(scores.nll, full.nll);
    EXPECT_EQ(scores.last_logits, full.last_logits);
  }
}

TEST(HostPolicy, EvictingEachTokenOrSeveralAtOnceKeepsTheNllClose) {
  const Ids ids = text();
  const auto mean_nll = [&](int every) {
    const EngineOptions options = evicting(Policy::h2o, 0, 32, 32, every);
    const auto engine = host_test::engine(host_test::tiny_neox(), options);
    return host_test::mean(engine->score_decoded(ids, 100).nll);
  };
  EXPECT_NEAR(mean_nll(8), mean_nll(1), 0.05);
}

TEST(HostPolicy, ARaggedBatchGivesEachSequenceWhatItGetsAlone) {
  const Ids ids = text();
  const std::vector<Ids> prompts{
      first(ids, 3), first(ids, 80), {ids.begin() + 9, ids.begin() + 41}};
  for (const Case& c : all_cases()) {
    SCOPED_TRACE(c.name);
    EngineOptions options = c.options;
    const auto alone = host_test::engine(host_test::tiny_neox(), options);
    options.batch_size = static_cast<int>(prompts.size());
    const auto batch = host_test::engine(host_test::tiny_neox(), options);
    std::vector<Ids> together(prompts.size());
    Ids tokens = batch->start(prompts, {});
    for (int step = 0; step < 40; ++step) {
      if (step > 0) tokens = batch->next();
      for (std::size_t b = 0; b < prompts.size(); ++b) together[b].push_back(tokens[b]);
    }
    for (std::size_t b = 0; b < prompts.size(); ++b) {
      EXPECT_EQ(together[b], host_test::generate(*alone, prompts[b], 40)) << b;
      for (int layer = 0; layer < alone->config().num_layers; ++layer) {
        EXPECT_EQ(batch->cache_snapshot(static_cast<int>(b), layer).positions,
                  alone->cache_snapshot(0, layer).positions);
      }
    }
  }
}

TEST(HostPolicy, RefusesImpossibleOptions) {
  const auto refused = [](const EngineOptions& options, std::initializer_list<std::string> parts) {
    test_support::expect_error([&] { host_test::engine(host_test::tiny_neox(), options); }, parts);
  };
  refused(evicting(Policy::h2o, 0, 4, 4, 0), {"evict_every", "found 0"});
  refused(evicting(Policy::random, 0, 4, 0), {"recent", "random", "at least 1", "found 0"});
  refused(evicting(Policy::window, 0, 4, 4), {"heavy", "window", "found 4"});
  refused(evicting(Policy::window, 1, 0, 4), {"sinks", "window", "found 1"});
  refused(evicting(Policy::streaming, 1, 3, 4), {"heavy", "streaming", "found 3"});
  refused(evicting(Policy::h2o, 0, 0, 0), {"budget", "found 0"});
}

}  // namespace
