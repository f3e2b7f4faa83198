// The slot algorithm against the oracle on original indices: prefill, growth and steady state.
#include <waterweight/reference/h2o_oracle.hpp>

#include <algorithm>
#include <cstdint>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <waterweight/reference/attention.hpp>
#include <waterweight/reference/h2o.hpp>
#include "tests/reference/heads.hpp"

namespace {

namespace ref = waterweight::reference;
using testing_heads::Cache;
using testing_heads::Heads;
using waterweight::h2o_policy;
using waterweight::rotary_view;

struct Case {
  const char* name;
  h2o_policy budget;
  std::vector<std::int32_t> prompts;  ///< one per sequence; unequal lengths make a ragged batch
  int steps;
  int kv_heads, group, head_dim, rotary_dims;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<Case> cases() {
  const h2o_policy plain{0, 6, 5}, sinks{2, 5, 4};
  return {
      {"PromptOfOne", plain, {1}, 40, 2, 1, 8, 4},
      {"PromptBudgetLess1", plain, {10}, 20, 2, 1, 8, 2},
      {"PromptBudget", plain, {11}, 20, 2, 1, 8, 2},
      {"PromptBudgetPlus1", plain, {12}, 20, 2, 1, 8, 2},
      {"PromptBudgetPlus2", plain, {13}, 20, 2, 1, 8, 2},
      {"LongPrompt", plain, {60}, 20, 1, 2, 16, 16},
      {"SinksPromptOfOne", sinks, {1}, 40, 1, 3, 4, 0},
      {"SinksPromptBudget", sinks, {11}, 25, 2, 1, 8, 4},
      {"SinksLongPrompt", sinks, {50}, 25, 2, 2, 8, 4},
      {"NoRecent", {0, 7, 0}, {20}, 30, 2, 1, 8, 4},
      {"NoRecentShortPrompt", {1, 7, 0}, {3}, 30, 2, 1, 8, 4},
      {"NoHeavy", {0, 0, 7}, {20}, 30, 2, 1, 8, 4},
      {"StreamingWindow", {4, 0, 7}, {20}, 30, 2, 1, 8, 4},
      {"BothMinimal", {0, 1, 1}, {9}, 30, 1, 4, 8, 4},
      {"RaggedGrouped", {1, 5, 4}, {1, 9, 10, 11, 12, 40}, 25, 2, 3, 10, 6},
      {"Wide", {0, 12, 12}, {30, 23}, 40, 3, 1, 80, 20},
  };
}

class SlotsAgainstOracle : public testing::TestWithParam<Case> {};

TEST_P(SlotsAgainstOracle, KeepTheSameKeysAndGiveTheSameOutputs) {
  const Case& c = GetParam();
  const int batch = static_cast<int>(c.prompts.size()), heads = c.kv_heads * c.group;
  const int longest = *std::max_element(c.prompts.begin(), c.prompts.end());
  std::mt19937 random(101);
  Heads q(batch, longest + c.steps, heads, c.head_dim),
      k(batch, longest + c.steps, c.kv_heads, c.head_dim);
  Heads v(batch, longest + c.steps, c.kv_heads, c.head_dim), out(batch, longest, heads, c.head_dim);
  q.fill(random, 1.5);
  k.fill(random);
  v.fill(random);
  const auto freq = testing_heads::inverse_frequencies(c.rotary_dims);
  const rotary_view rotary{freq.data(), c.rotary_dims};

  std::vector<ref::h2o_oracle> oracles;
  std::vector<std::vector<std::vector<ref::h2o_oracle::vector>>> expected;
  const auto group_queries = [&](int b, int t, int h) {
    std::vector<ref::h2o_oracle::vector> queries;
    for (int g = 0; g < c.group; ++g) queries.push_back(q.vector(b, t, h * c.group + g));
    return queries;
  };
  for (int b = 0; b < batch; ++b) {
    for (int h = 0; h < c.kv_heads; ++h) {
      std::vector<std::vector<ref::h2o_oracle::vector>> queries;
      std::vector<ref::h2o_oracle::vector> keys, values;
      for (int t = 0; t < c.prompts[b]; ++t) {
        queries.push_back(group_queries(b, t, h));
        keys.push_back(k.vector(b, t, h));
        values.push_back(v.vector(b, t, h));
      }
      oracles.emplace_back(c.budget, c.group, freq);
      expected.push_back(oracles.back().prefill(queries, keys, values));
    }
  }

  // Prefill on the slots' side works on rotated copies.
  Heads q_turned(batch, longest, heads, c.head_dim),
      k_turned(batch, longest, c.kv_heads, c.head_dim);
  auto q_prompt = q.view, k_prompt = k.view, v_prompt = v.view;
  q_prompt.tokens = k_prompt.tokens = v_prompt.tokens = longest;
  ref::apply_rotary<double>(q_prompt, rotary, 0, q_turned.view);
  ref::apply_rotary<double>(k_prompt, rotary, 0, k_turned.view);
  std::vector<double> mass(static_cast<std::size_t>(batch) * c.kv_heads * longest);
  ref::causal_attention<double>(q_turned.view, k_turned.view, v_prompt, c.prompts.data(), out.view,
                                static_cast<double*>(nullptr), mass.data());
  Cache slots(batch, c.kv_heads, c.budget.capacity(), c.head_dim);
  ref::h2o_select_and_compact(k_turned.view, v_prompt, mass.data(), c.prompts.data(), c.budget,
                              slots.cache, slots.state);

  const auto expect_same_state = [&](const std::string& when) {
    for (int b = 0; b < batch; ++b) {
      for (int h = 0; h < c.kv_heads; ++h) {
        const ref::h2o_oracle& oracle = oracles[b * c.kv_heads + h];
        std::vector<int> kept;
        for (int s = 0; s < c.budget.capacity(); ++s) {
          const std::size_t i = slots.slot(b, h, s);
          if (slots.position[i] < 0) continue;
          kept.push_back(slots.position[i]);
          ASSERT_NEAR(slots.score[i], oracle.score(slots.position[i]), 1e-4) << when;
        }
        std::sort(kept.begin(), kept.end());
        ASSERT_EQ(kept, oracle.kept()) << when;
        ASSERT_EQ(slots.step[b], oracle.tokens()) << when;
      }
    }
  };
  expect_same_state("after prefill");
  for (int b = 0; b < batch; ++b)
    for (int t = 0; t < c.prompts[b]; ++t)
      for (int h = 0; h < heads; ++h)
        for (int d = 0; d < c.head_dim; ++d)
          ASSERT_NEAR(out.at(b, t, h)[d], expected[b * c.kv_heads + h / c.group][t][h % c.group][d],
                      1e-9);

  Heads q_new(batch, 1, heads, c.head_dim), k_new(batch, 1, c.kv_heads, c.head_dim);
  Heads v_new(batch, 1, c.kv_heads, c.head_dim), result(batch, 1, heads, c.head_dim);
  for (int s = 0; s < c.steps; ++s) {
    for (int b = 0; b < batch; ++b) {
      const int t = c.prompts[b] + s;
      for (int h = 0; h < heads; ++h) std::copy_n(q.at(b, t, h), c.head_dim, q_new.at(b, 0, h));
      for (int h = 0; h < c.kv_heads; ++h) {
        std::copy_n(k.at(b, t, h), c.head_dim, k_new.at(b, 0, h));
        std::copy_n(v.at(b, t, h), c.head_dim, v_new.at(b, 0, h));
      }
    }
    ref::h2o_decode_attention<double>(q_new.view, k_new.view, v_new.view, rotary, c.budget,
                                      slots.cache, slots.state, result.view);
    ref::h2o_advance(slots.step.data(), slots.length.data(), batch, c.budget.capacity());
    for (int b = 0; b < batch; ++b) {
      const int t = c.prompts[b] + s;
      for (int h = 0; h < c.kv_heads; ++h) {
        const auto outputs = oracles[b * c.kv_heads + h].decode(
            group_queries(b, t, h), k.vector(b, t, h), v.vector(b, t, h));
        for (int g = 0; g < c.group; ++g)
          for (int d = 0; d < c.head_dim; ++d)
            ASSERT_NEAR(result.at(b, 0, h * c.group + g)[d], outputs[g][d], 1e-9) << "step " << s;
      }
    }
    expect_same_state("after step " + std::to_string(s));
  }
  // The seeds must not rest on near-ties, which fp32 scores may decide the other way.
  for (const auto& oracle : oracles) EXPECT_GT(oracle.least_gap(), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Shapes, SlotsAgainstOracle, testing::ValuesIn(cases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(H2oOracle, HandComputed) {
  // All keys zero: every probability is 1/(keys seen). Budget heavy 1, recent 1.
  ref::h2o_oracle oracle({0, 1, 1}, 1, {});
  const ref::h2o_oracle::vector zero{0.0};
  oracle.prefill({{zero}, {zero}}, {zero, zero}, {{2.0}, {4.0}});
  EXPECT_EQ(oracle.kept(), (std::vector<int>{0, 1}));
  EXPECT_NEAR(oracle.score(0), 1.5, 1e-12);
  const auto output = oracle.decode({zero}, zero, {6.0});
  EXPECT_NEAR(output[0][0], 4.0, 1e-12);
  EXPECT_EQ(oracle.kept(), (std::vector<int>{0, 2}));  // 0.5 + 1/3 < 1.5 + 1/3
  EXPECT_NEAR(oracle.score(0), 1.5 + 1.0 / 3, 1e-12);
  EXPECT_EQ(oracle.evictions(), 1);
}

}  // namespace
