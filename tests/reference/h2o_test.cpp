// H2O on slots: hand-computed evictions and selections, and what must hold whatever the numbers
// are.
#include <waterweight/reference/h2o.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "tests/reference/heads.hpp"

namespace {

namespace ref = waterweight::reference;
using testing_heads::Cache;
using testing_heads::Heads;
using testing_heads::kPoison;
using waterweight::h2o_policy;
using waterweight::rotary_view;

const float kNan = std::numeric_limits<float>::quiet_NaN();
using Positions = std::vector<std::int32_t>;

TEST(H2oSelect, KeepsSinksRecentAndTheHeaviest) {
  const std::vector<float> score{9, 1, 7, 3, 5, 3, 0, 0};
  EXPECT_EQ(ref::select_positions(score.data(), 8, {0, 2, 2}), (Positions{0, 2, 6, 7}));
  EXPECT_EQ(ref::select_positions(score.data(), 8, {2, 1, 1}), (Positions{0, 1, 2, 7}));
  EXPECT_EQ(ref::select_positions(score.data(), 8, {0, 0, 3}), (Positions{5, 6, 7}));
  EXPECT_EQ(ref::select_positions(score.data(), 8, {0, 3, 0}), (Positions{0, 2, 4}));
  EXPECT_EQ(ref::select_positions(score.data(), 8, {3, 3, 2}), (Positions{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(H2oSelect, OnATieTheLowerPositionLeaves) {
  const std::vector<float> score{2, 2, 2, 2, 2};
  EXPECT_EQ(ref::select_positions(score.data(), 5, {0, 2, 1}), (Positions{2, 3, 4}));
}

TEST(H2oSelect, NanLeavesFirst) {
  const std::vector<float> score{kNan, -1, kNan, 3, 0};
  EXPECT_EQ(ref::select_positions(score.data(), 5, {0, 2, 1}), (Positions{1, 3, 4}));
  EXPECT_EQ(ref::select_positions(score.data(), 5, {1, 2, 1}), (Positions{0, 1, 3, 4}));
}

TEST(H2oCompact, MovesKeptRowsIntoTheFirstSlots) {
  std::mt19937 random(17);
  const h2o_policy budget{1, 1, 1};
  Heads k(2, 5, 2, 3), v(2, 5, 2, 3);
  k.fill(random);
  v.fill(random);
  const Positions lengths{5, 2};
  std::vector<float> sums(2 * 2 * 5, 0.5f);
  sums[1] = 4;      // sequence 0, head 0 keeps position 1
  sums[5 + 3] = 4;  // sequence 0, head 1 keeps position 3
  Cache c(2, 2, budget.capacity(), 3);
  ref::h2o_select_and_compact(k.view, v.view, sums.data(), lengths.data(), budget, c.cache,
                              c.state);
  const Positions expected[2][2] = {{{0, 1, 4, -1}, {0, 3, 4, -1}},
                                    {{0, 1, -1, -1}, {0, 1, -1, -1}}};
  for (int b = 0; b < 2; ++b) {
    EXPECT_EQ(c.step[b], lengths[b]);
    EXPECT_EQ(c.length[b], std::min(lengths[b], 3));
    for (int h = 0; h < 2; ++h) {
      EXPECT_EQ(c.free_slot[b * 2 + h], c.length[b]);
      for (int s = 0; s < 4; ++s) {
        const std::size_t i = c.slot(b, h, s);
        const std::int32_t p = expected[b][h][s];
        EXPECT_EQ(c.position[i], p);
        EXPECT_EQ(c.score[i], p < 0 ? static_cast<float>(kPoison) : sums[(b * 2 + h) * 5 + p]);
        for (int d = 0; d < 3; ++d) {
          EXPECT_EQ(c.k[i * 3 + d], p < 0 ? kPoison : k.at(b, p, h)[d]);
          EXPECT_EQ(c.v[i * 3 + d], p < 0 ? kPoison : v.at(b, p, h)[d]);
        }
      }
    }
  }
}

/// One sequence with 2 KV heads of 2 query heads each, decoded from an empty cache.
struct Decoding {
  static constexpr int kHeads = 4, kKvHeads = 2, kDim = 8;

  Decoding(int tokens, int capacity, bool scored)
      : q(1, tokens, kHeads, kDim),
        k(1, tokens, kKvHeads, kDim),
        v(1, tokens, kKvHeads, kDim),
        out(1, tokens, kHeads, kDim),
        freq(testing_heads::inverse_frequencies(4)),
        c(1, kKvHeads, capacity, kDim, scored) {
    std::mt19937 random(23);
    q.fill(random, 2);
    k.fill(random);
    v.fill(random);
    std::fill(c.position.begin(), c.position.end(), -1);
    c.free_slot = {0, 0};
    c.step = c.length = {0};
  }

  void step(int t, const h2o_policy& budget) {
    ref::h2o_decode_attention<double>(q.token(t), k.token(t), v.token(t),
                                      rotary_view{freq.data(), 4}, budget, c.cache, c.state,
                                      out.token(t));
    ref::h2o_advance(c.state, 1, c.cache.capacity, budget);
  }

  /// The live positions of a head before the next token, sorted.
  Positions positions(int head) const {
    Positions live;
    for (int s = 0; s < c.cache.capacity; ++s) {
      const std::int32_t p = c.position[c.slot(0, head, s)];
      if (p >= 0) live.push_back(p);
    }
    std::sort(live.begin(), live.end());
    return live;
  }

  double mass(int head) const {
    double sum = 0;
    for (int s = 0; s < c.cache.capacity; ++s) {
      const std::size_t i = c.slot(0, head, s);
      if (c.position[i] >= 0) sum += c.score[i];
    }
    return sum;
  }

  Heads q, k, v, out;
  std::vector<float> freq;
  Cache c;
};

void expect_invariants(const h2o_policy& policy) {
  const int tokens = 60;
  Decoding run(tokens, policy.capacity(), true);
  std::vector<double> dropped(Decoding::kKvHeads, 0);
  for (int t = 0; t < tokens; ++t) {
    std::vector<Positions> before;
    std::vector<double> mass_before;
    for (int h = 0; h < Decoding::kKvHeads; ++h) {
      before.push_back(run.positions(h));
      mass_before.push_back(run.mass(h));
    }
    run.step(t, policy);
    for (int h = 0; h < Decoding::kKvHeads; ++h) {
      const Positions after = run.positions(h);
      Positions seen = before[h];
      seen.push_back(t);
      const bool full = static_cast<int>(seen.size()) == policy.capacity();
      ASSERT_EQ(after.size(), seen.size() - (full ? policy.evict_every : 0));
      ASSERT_EQ(std::set<int>(after.begin(), after.end()).size(), after.size());
      ASSERT_TRUE(std::includes(seen.begin(), seen.end(), after.begin(), after.end()));
      for (int p = 0; p <= t; ++p) {
        if (p < policy.sinks || p > t - policy.recent) {
          ASSERT_TRUE(std::binary_search(after.begin(), after.end(), p)) << "token " << t;
        }
      }
      ASSERT_EQ(static_cast<int>(after.size()), run.c.length[0]);
      if (policy.evict_every > 1) {
        ASSERT_EQ(run.c.free_slot[h], run.c.length[0]);
      }
      // Every step adds 1 per query head; what does not stay has been dropped.
      const int group = Decoding::kHeads / Decoding::kKvHeads;
      const double lost = mass_before[h] + group - run.mass(h);
      if (!full) {
        ASSERT_NEAR(lost, 0, 1e-4);
      }
      ASSERT_GE(lost, -1e-4);
      dropped[h] += lost;
      ASSERT_NEAR(run.mass(h) + dropped[h], group * (t + 1.0), 1e-3);
      // A freed slot keeps its victim's score: with one victim it is all that was lost.
      if (full && policy.evict_every == 1) {
        ASSERT_NEAR(lost, run.c.score[run.c.slot(0, h, run.c.free_slot[h])], 1e-4);
      }
    }
  }
}

TEST(H2oDecode, InvariantsHoldStepByStep) {
  expect_invariants({0, 3, 4});
  expect_invariants({2, 3, 4});
  expect_invariants({0, 0, 5});
  expect_invariants({3, 0, 5});
  expect_invariants({0, 5, 0});
  expect_invariants({2, 1, 0});
  expect_invariants({0, 1, 1});
  expect_invariants({0, 0, 1});
  expect_invariants({0, 0, 0});
  expect_invariants({1, 4, 3, 4});
  expect_invariants({0, 0, 6, 3});
  expect_invariants({0, 2, 0, 7});
  expect_invariants({0, 0, 0, 2});
}

TEST(H2oDecode, BudgetOfTheWholeLengthIsPlainAttentionBitForBit) {
  const int tokens = 20;
  Decoding scored(tokens, tokens + 1, true), plain(tokens, tokens + 1, false);
  plain.c.state.position = nullptr;
  for (int t = 0; t < tokens; ++t) {
    scored.step(t, {0, 10, 10});
    plain.step(t, {});
  }
  EXPECT_EQ(scored.out.data, plain.out.data);
  EXPECT_EQ(scored.c.k, plain.c.k);
  EXPECT_EQ(plain.c.free_slot, (Positions{tokens, tokens}));
}

TEST(H2oDecode, DecodingFromNothingIsCausalAttention) {
  const int tokens = 15;
  Decoding run(tokens, tokens + 1, true);
  for (int t = 0; t < tokens; ++t) run.step(t, {0, 15, 0});
  Heads expected(1, tokens, Decoding::kHeads, Decoding::kDim);
  const rotary_view rotary{run.freq.data(), 4};
  ref::apply_rotary<double>(run.q.view, rotary, 0, run.q.view);
  ref::apply_rotary<double>(run.k.view, rotary, 0, run.k.view);
  std::vector<double> mass(Decoding::kKvHeads * tokens);
  ref::causal_attention<double>(run.q.view, run.k.view, run.v.view, nullptr, expected.view,
                                static_cast<double*>(nullptr), mass.data());
  for (std::size_t i = 0; i < expected.data.size(); ++i) {
    ASSERT_NEAR(run.out.data[i], expected.data[i], 1e-12);
  }
  for (int h = 0; h < Decoding::kKvHeads; ++h)
    for (int t = 0; t < tokens; ++t)
      EXPECT_NEAR(run.c.score[run.c.slot(0, h, t)], mass[h * tokens + t], 1e-5);
}

TEST(H2oDecode, SlotOrderDoesNotMatter) {
  const h2o_policy budget{1, 4, 3};
  const int tokens = 30, half = 15, capacity = budget.capacity();
  Decoding plain(tokens, capacity, true), shuffled(tokens, capacity, true);
  for (int t = 0; t < half; ++t) {
    plain.step(t, budget);
    shuffled.step(t, budget);
  }
  std::vector<int> order(capacity);  // new slot s holds what old slot order[s] held
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(1);
  for (int h = 0; h < Decoding::kKvHeads; ++h) {
    std::shuffle(order.begin(), order.end(), random);
    const Cache& from = plain.c;
    Cache& to = shuffled.c;
    for (int s = 0; s < capacity; ++s) {
      const std::size_t a = to.slot(0, h, s), b = from.slot(0, h, order[s]);
      to.position[a] = from.position[b];
      to.score[a] = from.score[b];
      for (int d = 0; d < Decoding::kDim; ++d) {
        to.k[a * Decoding::kDim + d] = from.k[b * Decoding::kDim + d];
        to.v[a * Decoding::kDim + d] = from.v[b * Decoding::kDim + d];
      }
      if (order[s] == from.free_slot[h]) to.free_slot[h] = s;
    }
  }
  for (int t = half; t < tokens; ++t) {
    plain.step(t, budget);
    shuffled.step(t, budget);
    for (int h = 0; h < Decoding::kKvHeads; ++h)
      ASSERT_EQ(plain.positions(h), shuffled.positions(h));
  }
  for (std::size_t i = 0; i < plain.out.data.size(); ++i) {
    ASSERT_NEAR(plain.out.data[i], shuffled.out.data[i], 1e-12);
  }
}

TEST(H2oDecode, NanInOneHeadLeavesTheOtherAloneAndTheInvariantsStanding) {
  const h2o_policy budget{1, 3, 3};
  const int tokens = 30;
  Decoding clean(tokens, budget.capacity(), true), dirty(tokens, budget.capacity(), true);
  dirty.k.at(0, 4, 0)[2] = std::numeric_limits<double>::quiet_NaN();
  dirty.v.at(0, 4, 0)[1] = std::numeric_limits<double>::infinity();
  for (int t = 0; t < tokens; ++t) {
    clean.step(t, budget);
    dirty.step(t, budget);
    const Positions bad = dirty.positions(0);
    ASSERT_EQ(bad.size(), clean.positions(0).size());
    ASSERT_EQ(bad.front(), 0);
    for (int p = std::max(0, t - 2); p <= t; ++p)
      ASSERT_TRUE(std::binary_search(bad.begin(), bad.end(), p));
    ASSERT_EQ(dirty.positions(1), clean.positions(1));
    ASSERT_EQ(dirty.out.vector(0, t, 2), clean.out.vector(0, t, 2));
    ASSERT_EQ(dirty.out.vector(0, t, 3), clean.out.vector(0, t, 3));
  }
}

}  // namespace
