// Rotary embedding and causal prefill attention on the host.
#include <waterweight/reference/attention.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <waterweight/reference/float16.hpp>
#include "tests/reference/heads.hpp"

namespace {

namespace ref = waterweight::reference;
using testing_heads::Heads;
using testing_heads::inverse_frequencies;
using testing_heads::kPoison;
using waterweight::rotary_view;

TEST(Rotary, QuarterTurnPairsHalves) {
  // Position 1 with frequency pi/2: (a, b) -> (-b, a); position 2: (-a, -b). The rest stays.
  const std::vector<float> freq{1.57079632679f, 0.0f};
  Heads x(1, 3, 1, 6);
  for (int t = 0; t < 3; ++t)
    for (int d = 0; d < 6; ++d) x.at(0, t, 0)[d] = d + 1;
  ref::apply_rotary<double>(x.view, rotary_view{freq.data(), 4}, 0, x.view);
  const double expected[3][6] = {{1, 2, 3, 4, 5, 6}, {-3, 2, 1, 4, 5, 6}, {-1, 2, -3, 4, 5, 6}};
  for (int t = 0; t < 3; ++t)
    for (int d = 0; d < 6; ++d) EXPECT_NEAR(x.at(0, t, 0)[d], expected[t][d], 1e-6) << t << d;
}

TEST(Rotary, ScoresDependOnDistanceOnly) {
  std::mt19937 random(3);
  const auto freq = inverse_frequencies(20);
  const rotary_view rotary{freq.data(), 20};
  Heads q(1, 1, 1, 80), k(1, 1, 1, 80), q2(1, 1, 1, 80), k2(1, 1, 1, 80);
  q.fill(random);
  k.fill(random);
  const auto score = [&](int i, int j) {
    ref::apply_rotary<double>(q.view, rotary, i, q2.view);
    ref::apply_rotary<double>(k.view, rotary, j, k2.view);
    return ref::dot<double>(q2.at(0, 0, 0), k2.at(0, 0, 0), 80);
  };
  EXPECT_NEAR(score(7, 3), score(1004, 1000), 1e-3);
  EXPECT_GT(std::fabs(score(7, 3) - score(7, 5)), 1e-2);
}

TEST(Attention, HandComputed) {
  // head_dim 1: scores are q k. Token 1 sees logits ln 3 * {1, 0} -> p = {3/4, 1/4}.
  Heads q(1, 2, 1, 1), k(1, 2, 1, 1), v(1, 2, 1, 1), out(1, 2, 1, 1);
  q.at(0, 0, 0)[0] = 5;
  q.at(0, 1, 0)[0] = std::log(3.0);
  k.at(0, 0, 0)[0] = 1;
  k.at(0, 1, 0)[0] = 0;
  v.at(0, 0, 0)[0] = 8;
  v.at(0, 1, 0)[0] = 16;
  std::vector<double> lse(2), mass(2);
  ref::causal_attention<double>(q.view, k.view, v.view, nullptr, out.view, lse.data(), mass.data());
  EXPECT_NEAR(out.at(0, 0, 0)[0], 8, 1e-12);
  EXPECT_NEAR(out.at(0, 1, 0)[0], 10, 1e-12);
  EXPECT_NEAR(lse[0], 5, 1e-12);
  EXPECT_NEAR(lse[1], std::log(4.0), 1e-12);
  EXPECT_NEAR(mass[0], 1.75, 1e-12);
  EXPECT_NEAR(mass[1], 0.25, 1e-12);
}

TEST(Attention, GroupedHeadsMatchRepeatedHeadsAndMassSumsToQueries) {
  std::mt19937 random(11);
  const int batch = 2, tokens = 9, heads = 6, kv_heads = 2, dim = 5, group = heads / kv_heads;
  Heads q(batch, tokens, heads, dim), k(batch, tokens, kv_heads, dim),
      v(batch, tokens, kv_heads, dim);
  Heads k_all(batch, tokens, heads, dim), v_all(batch, tokens, heads, dim);
  Heads out(batch, tokens, heads, dim), out_all(batch, tokens, heads, dim);
  q.fill(random);
  k.fill(random);
  v.fill(random);
  for (int b = 0; b < batch; ++b)
    for (int t = 0; t < tokens; ++t)
      for (int h = 0; h < heads; ++h)
        for (int d = 0; d < dim; ++d) {
          k_all.at(b, t, h)[d] = k.at(b, t, h / group)[d];
          v_all.at(b, t, h)[d] = v.at(b, t, h / group)[d];
        }
  const std::vector<std::int32_t> lengths{9, 4};
  std::vector<double> lse(batch * heads * tokens, kPoison), lse_all(lse);
  std::vector<double> mass(batch * kv_heads * tokens, kPoison), mass_all(lse);
  ref::causal_attention<double>(q.view, k.view, v.view, lengths.data(), out.view, lse.data(),
                                mass.data());
  ref::causal_attention<double>(q.view, k_all.view, v_all.view, lengths.data(), out_all.view,
                                lse_all.data(), mass_all.data());
  EXPECT_EQ(out.data, out_all.data);
  EXPECT_EQ(lse, lse_all);
  for (int b = 0; b < batch; ++b) {
    for (int h = 0; h < kv_heads; ++h) {
      double total = 0;
      for (int t = 0; t < tokens; ++t) {
        const double value = mass[(b * kv_heads + h) * tokens + t];
        if (t >= lengths[b]) {
          EXPECT_EQ(value, kPoison);
          continue;
        }
        double repeated = 0;
        for (int g = 0; g < group; ++g)
          repeated += mass_all[(b * heads + h * group + g) * tokens + t];
        EXPECT_NEAR(value, repeated, 1e-12);
        total += value;
      }
      EXPECT_NEAR(total, group * lengths[b], 1e-9);
    }
    for (int t = lengths[b]; t < tokens; ++t)
      for (int h = 0; h < heads; ++h) EXPECT_EQ(out.at(b, t, h)[0], kPoison);
  }
}

TEST(Attention, LaterTokensDoNotChangeEarlierOutputs) {
  std::mt19937 random(5);
  Heads q(1, 6, 1, 4), k(1, 6, 1, 4), v(1, 6, 1, 4), a(1, 6, 1, 4), b(1, 6, 1, 4);
  q.fill(random);
  k.fill(random);
  v.fill(random);
  double* none = nullptr;
  ref::causal_attention<double>(q.view, k.view, v.view, nullptr, a.view, none, none);
  k.at(0, 5, 0)[0] = std::numeric_limits<double>::quiet_NaN();
  v.at(0, 5, 0)[1] = 1e9;
  ref::causal_attention<double>(q.view, k.view, v.view, nullptr, b.view, none, none);
  for (int t = 0; t < 5; ++t) EXPECT_EQ(a.vector(0, t, 0), b.vector(0, t, 0));
  EXPECT_TRUE(std::isnan(b.at(0, 5, 0)[0]));
}

TEST(Attention, HugeScoresDoNotOverflow) {
  Heads q(1, 2, 1, 2), k(1, 2, 1, 2), v(1, 2, 1, 2), out(1, 2, 1, 2);
  for (int t = 0; t < 2; ++t)
    for (int d = 0; d < 2; ++d) {
      q.at(0, t, 0)[d] = 1e4;
      k.at(0, t, 0)[d] = 1e4 * (t + 1);
      v.at(0, t, 0)[d] = t;
    }
  std::vector<float> lse(2);
  ref::causal_attention<float>(q.view, k.view, v.view, nullptr, out.view, lse.data(),
                               static_cast<float*>(nullptr));
  EXPECT_EQ(out.at(0, 1, 0)[0], 1);
  EXPECT_TRUE(std::isfinite(lse[1]));
}

}  // namespace
