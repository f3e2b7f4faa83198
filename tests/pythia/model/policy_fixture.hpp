// What the tests of the eviction policies share on the host and on a GPU: the policies under test,
// and what any of them must keep.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "examples/pythia/model/random_scores.hpp"
#include "tests/pythia/model/host_fixture.hpp"

namespace policy_test {

using host_test::Ids;
using pythia::CacheSnapshot;
using pythia::EngineOptions;
using pythia::Policy;
using waterweight::h2o_granularity;

struct Case {
  std::string name;
  EngineOptions options;

  bool exact() const {  ///< kept keys follow from positions alone
    return options.policy != Policy::h2o;
  }
};

inline EngineOptions evicting(Policy policy, int sinks, int heavy, int recent, int evict_every = 1,
                              h2o_granularity granularity = h2o_granularity::per_head) {
  EngineOptions options;
  options.policy = policy;
  options.sinks = sinks;
  options.heavy = heavy;
  options.recent = recent;
  options.evict_every = evict_every;
  options.granularity = granularity;
  options.policy_seed = 42;
  return options;
}

/// Every policy under every granularity and two intervals.
inline std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const int n : {1, 5}) {
    const std::string every = " every " + std::to_string(n);
    cases.push_back({"streaming" + every, evicting(Policy::streaming, 4, 0, 28, n)});
    cases.push_back({"window" + every, evicting(Policy::window, 0, 0, 32, n)});
    const std::pair<const char*, h2o_granularity> granularities[] = {
        {" head", h2o_granularity::per_head},
        {" layer", h2o_granularity::per_layer},
        {" model", h2o_granularity::per_model}};
    for (const auto& [name, granularity] : granularities) {
      cases.push_back({"h2o" + every + name, evicting(Policy::h2o, 0, 16, 16, n, granularity)});
      cases.push_back(
          {"h2o with sinks" + every + name, evicting(Policy::h2o, 3, 20, 9, n, granularity)});
      cases.push_back(
          {"random" + every + name, evicting(Policy::random, 2, 18, 12, n, granularity)});
    }
  }
  return cases;
}

/// Keys left of `tokens` tokens, of which the first `prompt` were prefilled.
inline int expected_count(const EngineOptions& options, int prompt, int tokens) {
  const int budget = options.sinks + options.heavy + options.recent;
  const int start = std::min(prompt, budget);
  const int decoded = tokens - prompt;
  if (start + decoded < budget + options.evict_every) return start + decoded;
  return budget + (start + decoded - budget) % options.evict_every;
}

/// What is kept of `tokens` tokens where positions and draws alone decide, right after an eviction.
inline Ids exact_positions(const EngineOptions& options, int layer, int head, int tokens) {
  const bool per_layer = options.granularity != h2o_granularity::per_head;
  const bool per_model = options.granularity == h2o_granularity::per_model;
  const pythia::RandomScores draw{options.policy_seed, options.granularity};
  Ids kept, rest;
  for (int position = 0; position < tokens; ++position) {
    const bool stays = position < options.sinks || position >= tokens - options.recent;
    (stays ? kept : rest).push_back(position);
  }
  std::sort(rest.begin(), rest.end(), [&](int a, int b) {
    return draw(per_model ? 0 : layer, per_layer ? 0 : head, a) >
           draw(per_model ? 0 : layer, per_layer ? 0 : head, b);
  });
  kept.insert(kept.end(), rest.begin(), rest.begin() + options.heavy);
  std::sort(kept.begin(), kept.end());
  return kept;
}

/// Counts, protection and sharing, for every layer and head of one sequence.
inline void expect_kept(const pythia::Engine& engine, const EngineOptions& options, int prompt,
                        int tokens, int sequence = 0) {
  const int count = expected_count(options, prompt, tokens);
  Ids first_of_model;
  for (int layer = 0; layer < engine.config().num_layers; ++layer) {
    const CacheSnapshot snapshot = engine.cache_snapshot(sequence, layer);
    ASSERT_EQ(static_cast<int>(snapshot.positions.size()), engine.config().num_heads);
    if (layer == 0) first_of_model = snapshot.positions[0];
    for (const Ids& kept : snapshot.positions) {
      ASSERT_EQ(static_cast<int>(kept.size()), count);
      const std::set<std::int32_t> set(kept.begin(), kept.end());
      ASSERT_EQ(set.size(), kept.size()) << "a position twice";
      for (int i = 0; i < std::min(options.sinks, tokens); ++i) ASSERT_EQ(set.count(i), 1u) << i;
      for (int i = std::max(0, tokens - options.recent); i < tokens; ++i) {
        ASSERT_EQ(set.count(i), 1u) << i;
      }
      ASSERT_LT(*set.rbegin(), tokens);
      if (options.granularity != h2o_granularity::per_head) {
        ASSERT_EQ(kept, snapshot.positions[0]);
      }
      if (options.granularity == h2o_granularity::per_model) {
        ASSERT_EQ(kept, first_of_model);
      }
    }
  }
}

}  // namespace policy_test
